"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import nn

from dino_x.config.options import CropSizes, Options
from dino_x.data.loading.sampler import Strata
from dino_x.distributed import sharding
from dino_x.distributed.agreement import Agreement
from dino_x.distributed.processes import processes_of
from dino_x.distributed.shares import largest_share
from dino_x.distributed.world import all_or_none
from dino_x.errors import SaidElsewhereError, StoppedError, UserError
from dino_x.exact import CenteringState, KoLeo, StepResult, update_teacher
from dino_x.exact.probe import NO_PROBE, StepProbe
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.model.backbone import Backbone
from dino_x.model.teacher import Network
from dino_x.runs.folder import RunFolder, lines
from dino_x.training.build import build, step_of_run
from dino_x.training.health.health import Finding, Health
from dino_x.training.keeping import Keeper, Report
from dino_x.training.metrics import step_metrics
from dino_x.training.online import Online
from dino_x.training.optimizer import set_values
from dino_x.training.recovery import Decision, Recovery
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.snapshots import Snapshots
from dino_x.training.step.batch_plan import BatchPlan, Cutter, ImageSource, draw_batch_plan
from dino_x.training.step.gram import GramTeacher, GramTerm, first_gram_teacher, next_gram_teacher
from dino_x.training.step.planned_batch import PlannedBatch
from dino_x.training.stopping import Stop, say
from dino_x.training.train_state import TrainState
from dino_x.views.sizes import crop_sizes

FILLING = 2**40  # steps that only fill the queue are counted from here


@dataclass
class Trainer:
    """A run and its one loop. All state changes in ``update``, once a step.

    Attributes:
        options: resolved.
        run: where checkpoints and the model go.
        source: canvases by image index.
        images: how many there are.
        images_hash: tells a resumed run whether they are still the same.
        cutter: makes crops of canvases.
        backbone: the student's, if it is loaded already.
        strata: which images should not come together, if that is known.
        ranks: the processes that share the run; all have the same state, rank 0 writes it.
        online: evaluates the teacher now and then, if there is one.
        state: what a checkpoint holds.
    """

    options: Options
    run: RunFolder
    source: ImageSource
    images: int
    images_hash: str
    cutter: Cutter
    backbone: Backbone | None = None
    strata: Strata | None = None
    ranks: Ranks = ALONE
    online: Online | None = None
    state: TrainState = field(init=False)

    def __post_init__(self) -> None:
        options, device = self.options, self.cutter.device
        built = build(options, device, self.backbone, self.ranks, sharded=self.sharded)
        self.state, self.targets_of = built.state, built.targets_of
        health_file = self.run.health if self.ranks.rank == 0 else None
        self.health = Health(options, self.student.backbone.width, health_file)
        self.agreement = Agreement(self.ranks, device)
        self.keeper = Keeper(
            options,
            self.run,
            self.state,
            self.images_hash,
            self.cutter,
            self.agreement,
            sharded=self.sharded,
        )
        self.saver = self.keeper.saver
        self.exact_step = step_of_run(
            options, built, device, processes_of(self.agreement, sharded=self.sharded)
        )
        self.progress = 0  # changes while this process gets on
        self.stopping = 0  # the signal for which it stops after the step it has done
        if options.train.compile:
            for network in (self.student, self.targets_of):
                network.backbone.compile_blocks()

    @property
    def student(self) -> Network:
        """The network that is trained."""
        return self.state.student

    @property
    def teacher(self) -> Network:
        """The moving average of the student."""
        return self.state.teacher

    @property
    def gram(self) -> GramTeacher | None:
        """The Gram teacher, if there is one now."""
        return self.state.gram

    @property
    def distilled(self) -> str | None:
        """Tells the distilled teacher from others; None if there is none."""
        return self.state.distilled

    @property
    def done(self) -> int:
        """Optimizer steps that are done."""
        return self.state.done

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the networks and of the optimizer."""
        return self.options.train.shard == "full" and self.ranks.world_size > 1

    def train(self, report: Report) -> None:
        """From the step after the last finished one to the end, or to where it is asked to stop.

        Raises: StoppedError for the latter; UserError for what the run cannot go on with.
        """
        steps = self.options.train.steps
        assert steps is not None
        snapshots = Snapshots(self.run.snapshots, self.options, self.images)
        alone = self.ranks.world_size == 1
        stop = Stop(
            says=self.ranks.rank == 0,
            progress=lambda: self.progress,
            give_up=None if alone else self.give_up,
        )
        self.agreement.asked = lambda: stop.asked
        with stop.listen(), self.saver.open(report):
            if self.done == 0:
                self.fill_queues()
                self.look(snapshots)
            while self.done < steps and not self.stopping:
                self.next_step(report, snapshots)
            stop.give_up = None  # what others do from here on takes as long as it takes
            self.agreement.exchange()
        if self.done < steps:
            raise StoppedError(
                f"stopped by a signal after step {self.done}; go on with --resume",
                self.stopping,
                says=self.ranks.rank == 0,
            )

    def next_step(self, report: Report, snapshots: Snapshots) -> None:
        """One step, and what is recorded, looked at and saved after it."""
        started = time.perf_counter()
        step, values = self.done, self.values()
        if self.saver.over:
            self.saver.saved(report)
        try:
            set_values(self.state.optimizer, self.student, values)
            result = self.gradients(step, values, self.health.probe(step))
            self.health.before_update(result, self.student, self.teacher)
            norm = self.update(step, result, values)
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
                metrics |= self.evaluated()
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

    def gradients(self, step: int, values: StepValues, probe: StepProbe = NO_PROBE) -> StepResult:
        """Of the whole effective batch of a step, left in ``.grad``; see exact/step.py.

        Raises: NotFiniteError.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        result = self.exact_step.gradient(
            self.batch(self.plan(step)),
            self.state.centering,
            values.teacher_temperature,
            self.gram_term(values.gram_weight),
            probe,
        )
        for name, value in result.terms.items():
            if not math.isfinite(value):
                raise NotFiniteError(f"{name} is {value}")
        return result

    def update(self, step: int, result: StepResult, values: StepValues) -> float:
        """Clip, optimizer, teacher, centers, Gram teacher: everything that changes, once.

        Returns: the gradient's norm.

        Raises: NotFiniteError, with nothing changed.
        """
        state = self.state
        clip = self.options.optim.clip or math.inf
        norm = float(sharding.whole(nn.utils.clip_grad_norm_(self.student.parameters(), clip)))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient norm is {norm}")
        state.optimizer.step()
        update_teacher(self.teacher, self.student, values.momentum)
        state.centering = result.next_state
        state.gram = next_gram_teacher(
            self.gram, self.teacher.backbone, step + 1, self.options.gram
        )
        return norm

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

    def values(self) -> StepValues:
        """What is scheduled for the next step."""
        values = values_at(self.done, self.options)
        return replace(values, lr=values.lr * self.state.recovery.lr_factor)

    def gram_term(self, weight: float) -> GramTerm | None:
        """Gram anchoring with a step's weight, if there is any."""
        if self.gram is None or not weight:
            return None
        patch_size = self.student.backbone.patch_size
        return GramTerm(self.gram.backbone, patch_size, weight, self.options.gram.resize)

    def plan(self, step: int, sizes: CropSizes | None = None) -> BatchPlan:
        """The draws of a step; crops of other sizes than those drawn if they are given."""
        backbone = self.student.backbone
        depth, patch_size = backbone.depth, backbone.patch_size
        return draw_batch_plan(
            self.options, step, self.images, depth, patch_size, sizes, self.strata
        )

    def batch(self, plan: BatchPlan) -> PlannedBatch:
        """The share of a plan that is this process's, in micro-batches."""
        size = self.options.train.micro_batch
        assert isinstance(size, int)
        return PlannedBatch.of(
            plan, size, self.source, self.cutter, self.ranks, on_micro_batch=self.advance
        )

    def advance(self) -> None:
        """Note that this process gets on."""
        self.progress += 1

    def fill_queues(self) -> None:
        """Before the first step: the teacher's outputs for images drawn as for steps of their own.

        A queue is full from the first step on. Steps to fill it are counted from ``FILLING``,
        where no run gets to.
        """
        step = FILLING
        dino, ibot = self.state.centering.dino, self.state.centering.ibot
        while len(dino.queue_QD) < dino.length:
            _, _, cls_RD, patches_MD = self.exact_step.bottlenecks(self.batch(self.plan(step)))
            dino, ibot = dino.after(cls_RD, dino.center_K), ibot.after(patches_MD, ibot.center_K)
            step += 1
        self.state.centering = CenteringState(dino, ibot)

    def look(self, snapshots: Snapshots) -> None:
        """A snapshot, if there is to be one after this step."""
        with self.agreement.this_rank_only(joint=self.sharded):
            snapshots.take(self.done, self.teacher, self.source, self.cutter, self.ranks)

    def evaluated(self) -> dict[str, float]:
        """The online evaluation after this step, if it is due."""
        takes_part = self.ranks.rank == 0 or self.sharded  # each has a part of the teacher
        if self.online is None or not takes_part or not self.online.due(self.done):
            return {}
        started = time.perf_counter()
        found = self.online.evaluate(self.teacher.backbone)
        return found | {"online/seconds": time.perf_counter() - started}

    @property
    def asked_to_stop(self) -> int:
        """The signal that asked the run to stop after this step, or 0; the same in all."""
        return self.agreement.asked() if self.ranks.world_size == 1 else self.agreement.stop

    def give_up(self) -> None:
        """Say that this process waits for another in vain."""
        say(
            f"process {self.ranks.rank}: asked to stop while it waits for another process, which"
            f" does not answer; {self.saver.last_good()}; go on with --resume"
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

    def try_micro_batch(self, size: int) -> None:
        """Forward and backward of one micro-batch, or of two if a step has more than one.

        As in a step: with gradients of the micro-batch before, and with KoLeo over both. For
        finding what fits, and how long it takes. Nothing is changed.
        """
        largest = max(crop_sizes(self.options), key=lambda sizes: sizes.global_size)
        share = largest_share(self.options.train.effective_batch, self.ranks.world_size)
        images = min(2 * size, share)
        spans = [slice(0, size), slice(size, images)] if images > size else [slice(0, images)]
        sizes = [span.stop - span.start for span in spans]
        batch = PlannedBatch(self.plan(0, largest), spans, sizes, self.source, self.cutter)
        weight = self.options.loss.koleo_weight if images > 1 else 0.0
        alone = replace(  # as others may not have room for it
            self.exact_step,
            processes=processes_of(Agreement(), sharded=self.sharded),
            statistic=KoLeo(weight, images),
        )
        gram, temperature = self.options.gram.weight, self.options.teacher.temperature
        self.state.optimizer.zero_grad(set_to_none=True)
        try:
            alone.gradient(batch, self.state.centering, temperature, self.gram_term(gram))
        finally:
            self.state.optimizer.zero_grad(set_to_none=True)
