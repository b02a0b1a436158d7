"""The training loop."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from dino_x.distributed.world import all_or_none
from dino_x.errors import SaidElsewhereError, StoppedError, UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.model.teacher import Network
from dino_x.runs.folder import RunFolder, lines
from dino_x.training.best import Patience, figure_of, patience_of
from dino_x.training.health.health import Finding, Health
from dino_x.training.keeping import Keeper, Report
from dino_x.training.metrics import step_metrics
from dino_x.training.online import Online
from dino_x.training.recovery import Decision, Recovery
from dino_x.training.schedules import StepValues
from dino_x.training.snapshots import Snapshots
from dino_x.training.step.gram import first_gram_teacher
from dino_x.training.steps import Steps
from dino_x.training.stopping import EARLY, Stop, say

FILLING = 2**40  # steps that only fill the queue are counted from here


@dataclass
class Trainer:
    """A run and its one loop.

    Attributes:
        steps: what one step does; all state changes there, once a step.
        run: where checkpoints and the model go; rank 0 writes it.
        images_hash: tells a resumed run whether the images are still the same.
        plain: whether they are 8-bit pictures; see ``model.pretrained.Preparation``.
        grey: whether a model of three channels sees them as grey; see there.
        online: evaluates the teacher now and then, if there is one.
    """

    steps: Steps
    run: RunFolder
    images_hash: str
    plain: bool = True
    grey: bool = False
    online: Online | None = None

    def __post_init__(self) -> None:
        self.options, self.ranks, self.cutter = (
            self.steps.options, self.steps.ranks, self.steps.cutter,
        )  # fmt: skip
        self.state, self.agreement = self.steps.state, self.steps.agreement
        self.sharded = self.steps.sharded
        health_file = self.run.health if self.ranks.rank == 0 else None
        self.health = Health(self.options, self.student.backbone.width, health_file)
        self.keeper = Keeper(self.steps, self.run, self.images_hash, self.plain, self.grey)
        self.saver = self.keeper.saver
        self.patience = Patience(self.options.online.patience)
        self.stopping = 0  # the signal for which it stops after the step it has done

    @property
    def student(self) -> Network:
        """The network that is trained."""
        return self.state.student

    @property
    def teacher(self) -> Network:
        """The moving average of the student."""
        return self.state.teacher

    @property
    def done(self) -> int:
        """Optimizer steps that are done."""
        return self.state.done

    def train(self, report: Report) -> None:
        """From the step after the last finished one to the end, or to where it is asked to stop.

        Raises: StoppedError for the latter; UserError for what the run cannot go on with.
        """
        steps = self.options.train.steps
        assert steps is not None
        snapshots = Snapshots(self.run.snapshots, self.options, self.steps.images)
        alone = self.ranks.world_size == 1
        stop = Stop(
            says=self.ranks.rank == 0,
            progress=lambda: self.steps.progress,
            give_up=None if alone else self.give_up,
        )
        self.agreement.asked = lambda: stop.asked or EARLY * self.patience.over
        self.steps.watch = report.within
        with stop.listen(), self.saver.open(report):
            if self.done == 0:
                self.steps.fill_queues()
                self.look(snapshots)
            while self.done < steps and not self.stopping:
                self.next_step(report, snapshots)
            stop.give_up = None  # what others do from here on takes as long as it takes
            self.agreement.exchange()
        if self.stopping == EARLY:
            self.stopped_early(report)
        elif self.done < steps:
            raise StoppedError(
                f"stopped by a signal after step {self.done}; continue with --resume",
                self.stopping,
                says=self.ranks.rank == 0,
            )

    def next_step(self, report: Report, snapshots: Snapshots) -> None:
        """One step, and what is recorded, looked at and saved after it."""
        started = time.perf_counter()
        step, steps = self.done, self.steps
        if self.saver.over:
            self.saver.saved(report)
        values = steps.begin()
        try:
            result = steps.gradients(step, values, self.health.probe(step))
            self.health.before_update(result, self.student, self.teacher)
            norm = steps.update(step, result, values)
        except NotFiniteError as error:
            self.state.optimizer.zero_grad(set_to_none=True)
            if self.recover(str(error), report) is Decision.GO_BACK:
                return
            self.record({"skipped": 1}, values, started, report)
        else:
            self.state.recovery.in_a_row = 0
            seen = self.health.after_update(self.student, self.teacher)
            terms = result.terms | {"gradient_norm": norm} | seen
            self.record(terms, values, started, report, judged=True)
            self.look(snapshots)
        self.save_if_due(report)

    def record(
        self,
        terms: dict[str, float],
        values: StepValues,
        started: float,
        report: Report,
        *,
        judged: bool = False,
    ) -> None:
        """Count a step as done, and record what it found; a judged one is evaluated, too."""
        self.state.done += 1
        metrics = step_metrics(
            terms,
            values,
            self.options,
            done=self.done,
            seconds=time.perf_counter() - started,
            device=self.cutter.device,
        )
        if judged:
            for finding in self.health.judge(metrics):
                report.finding(finding.paragraph())
            with self.agreement.this_rank_only(joint=self.sharded):
                metrics |= self.evaluated(report)
            if (figure := figure_of(metrics)) is not None:
                self.patience.take(figure)
        report.step(metrics, self.health.word())

    def save_if_due(self, report: Report) -> None:
        """A checkpoint, if there is to be one after this step.

        Raises: UserError if the run has to stop for its health.
        """
        stop = self.health.stop()
        self.stopping = self.asked_to_stop
        last = bool(self.done == self.options.train.steps or stop or self.stopping)
        # What is saved between skipped steps would push out the checkpoints before them.
        recovery = self.state.recovery
        due = self.done % self.options.checkpoint.every == 0 and not recovery.in_a_row
        if due:
            recovery.back_to = self.done
        if due or last:
            self.keeper.save(report, last)
        if stop:
            raise self.collapsed(stop)

    def recover(self, what: str, report: Report) -> Decision:
        """Skip a step with NaN or infinity, or go back to a checkpoint; nothing has changed.

        Raises: UserError if it can do neither.
        """
        recovery, step, steps = self.state.recovery, self.done + 1, self.options.train.steps
        decision = recovery.decide(
            self.options.train.skip_not_finite,
            last_and_none_counted=step == steps and recovery.skipped == self.done,
            can_go_back=lambda: self.keeper.can_go_back(report),
        )
        if decision is Decision.SKIP:
            if not recovery.in_a_row:
                report.finding(f"step {step} is skipped: {what}")
            recovery.skip()
        elif decision is Decision.GO_BACK:
            self.go_back(what, report)
        else:
            self.health.not_finite(step, what)
            kind = UserError if self.ranks.rank == 0 else SaidElsewhereError
            raise kind(
                f"stopped at step {step}: {what}; {self.saver.last_good()}; try a lower optim.lr,"
                " a longer optim.warmup or --precision fp32"
            )
        return decision

    def go_back(self, what: str, report: Report) -> None:
        """To the last checkpoint, and on from there with a lower learning rate.

        The checkpoint is written again with that rate, so that a resumed run has it as well.
        """
        step, before = self.done + 1, self.state.recovery
        factor = before.lr_factor * self.options.train.backoff
        self.state.gram = first_gram_teacher(self.options, self.teacher.backbone)
        self.health = Health(self.options, self.student.backbone.width, self.health.path)
        all_or_none(self.ranks, lambda: self.resume(report.finding, before.back_to))
        recovery: Recovery = self.state.recovery
        recovery.lr_factor, recovery.back_to = factor, self.done
        report.went_back(self.done)
        self.health.not_finite(self.done, f"step {step}: {what}")
        report.finding(
            f"step {step}: {what}; going back to the checkpoint after step {self.done}, and on from"
            f" there with {factor:g} times the learning rate"
        )
        self.keeper.save(report)

    def look(self, snapshots: Snapshots) -> None:
        """A snapshot, if there is to be one after this step."""
        with self.agreement.this_rank_only(joint=self.sharded):
            snapshots.take(self.done, self.teacher, self.steps.source, self.cutter, self.ranks)

    def evaluated(self, report: Report) -> dict[str, float]:
        """The online evaluation after this step, if it is due."""
        takes_part = self.ranks.rank == 0 or self.sharded  # each has a part of the teacher
        if self.online is None or not takes_part or not self.online.due(self.done):
            return {}
        started = time.perf_counter()
        found = self.online.evaluate(
            self.teacher.backbone, lambda done, total: report.doing(f"evaluating {done}/{total}")
        )
        return found | {"online/seconds": time.perf_counter() - started}

    @property
    def asked_to_stop(self) -> int:
        """The signal that asked the run to stop after this step, or 0; the same in all."""
        return self.agreement.asked() if self.ranks.world_size == 1 else self.agreement.stop

    def stopped_early(self, report: Report) -> None:
        """Say that the online evaluation did not rise any more, and note it."""
        if self.ranks.rank > 0:
            return
        self.run.add_fact("stopped_early", self.done)
        report.finding(
            f"ended early after step {self.done}: {self.options.online.patience} evaluations in"
            " a row without a new best one (online.patience)"
        )

    def give_up(self) -> None:
        """Say that this process waits for another in vain."""
        say(
            f"process {self.ranks.rank}: asked to stop while it waits for another process, which"
            f" does not answer; {self.saver.last_good()}; continue with --resume"
        )
        with contextlib.suppress(TimeoutError):
            self.saver.finish(seconds=5)

    def collapsed(self, finding: Finding) -> UserError:
        """The error for a run that has to stop for its health: what, and what may help."""
        if self.ranks.rank > 0:
            return SaidElsewhereError(finding.seen)
        return UserError(
            f"stopped after step {self.done}: {finding.state} since step {finding.since}:"
            f" {finding.seen}; {self.saver.last_good()}; in a new run try"
            f" {'; or '.join(finding.help) or 'other settings'}; to go on as it is:"
            " --resume --set health.on_collapse=warn"
        )

    def resume(
        self, say: Callable[[str], None] = lambda line: None, up_to: int | None = None
    ) -> None:
        """Take up the newest checkpoint of the run that is whole; see ``Keeper.resume``."""
        if self.keeper.resume(say, up_to):
            run = self.run
            self.health.resume(lines(run.metrics, self.done), lines(run.health, self.done))
            self.patience = patience_of(run, self.options, self.done)
            if self.patience.over:  # it had ended, and has nothing left to do
                self.stopping = EARLY
