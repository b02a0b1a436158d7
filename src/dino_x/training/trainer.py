"""The training loop."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dino_x.config.options import CropSizes, Options
from dino_x.data.loading.sampler import Strata
from dino_x.distributed import sharding
from dino_x.distributed.agreement import Agreement
from dino_x.distributed.shares import largest_share
from dino_x.distributed.world import check_alike
from dino_x.errors import SaidElsewhereError, StoppedError, UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.machine.device import autocast, dtype_of, peak_memory_gib
from dino_x.model.backbone import Backbone
from dino_x.model.teacher import Network, build_student, build_teacher, update_teacher
from dino_x.runs.folder import RunFolder
from dino_x.runs.saving import Saver
from dino_x.runs.start import take_heads
from dino_x.training.health.health import Finding, Health
from dino_x.training.online import Online
from dino_x.training.optimizer import build_optimizer, set_values
from dino_x.training.recovery import Recovery, skips
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.snapshots import Snapshots
from dino_x.training.step.batch_plan import (
    BatchPlan,
    Cutter,
    ImageSource,
    MicroBatch,
    draw_batch_plan,
    load,
    micro_batches,
)
from dino_x.training.step.distillation import distilled_teacher, fingerprint
from dino_x.training.step.exact_step import Centers, ExactStep, StepResult
from dino_x.training.step.gram import (
    GramTerm,
    first_gram_teacher,
    next_gram_teacher,
)
from dino_x.training.step.probe import Probe
from dino_x.training.step.queue import Queues
from dino_x.training.stopping import Stop, say
from dino_x.training.train_state import state_of, take_up, write_state
from dino_x.views.sizes import GLOBAL_VIEWS, crop_sizes

FILLING = 2**40  # steps that only fill the queue are counted from here


@dataclass
class Trainer:
    """A run's state and its one loop. All state changes in ``update``, once a step.

    Attributes:
        options: resolved.
        run: where checkpoints and the model go.
        source: canvases by image index.
        images: how many there are.
        images_hash: tells a resumed run whether they are still the same.
        cutter: canvases to crops.
        backbone: the student's, if it is loaded already.
        strata: which images should not come together, if that is known.
        ranks: the processes that share the run; all have the same state, the first writes it.
        online: evaluates the teacher now and then, if there is one.
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
    done: int = 0
    online: Online | None = None
    student: Network = field(init=False)
    teacher: Network = field(init=False)

    def __post_init__(self) -> None:
        options, device = self.options, self.cutter.device
        student = build_student(options, self.backbone)
        if options.model.heads_from == "run":
            take_heads(student, options.model.name)
        student = student.to(dtype_of(options.train.precision))
        student.backbone.recompute = options.train.activation_checkpointing
        self.student, self.teacher = student, build_teacher(student)
        frozen = distilled_teacher(options, student)
        self.targets_of = frozen or self.teacher
        self.distilled = None if frozen is None else fingerprint(frozen)
        self.gram = first_gram_teacher(options, self.teacher.backbone)
        self.place_networks()
        self.optimizer = build_optimizer(student, options.optim)
        zeros = torch.zeros(options.head.prototypes, device=device, dtype=self.cutter.dtype)
        self.centers = Centers(zeros, zeros.clone())
        bottleneck = zeros.new_empty(self.targets_of.dino_head.last_layer.shape[1])
        self.queues = Queues.empty(options.loss.queue, bottleneck)
        health_file = self.run.health if self.ranks.rank == 0 else None
        self.health = Health(options, student.backbone.width, health_file)
        self.agreement = Agreement(self.ranks, device)
        self.saver = Saver(self.run.checkpoints, partial(write_state, self), options.checkpoint)
        self.recovery = Recovery()
        self.progress = 0  # changes while this process gets on
        self.stopping = 0  # the signal for which it stops after the step it has done
        self.effective_batch = ExactStep(
            student,
            self.targets_of,
            options.loss,
            autocast(options.train.precision, device),
            distilled=frozen is not None,
            ranks=self.ranks,
            sharded=self.sharded,
            agreement=self.agreement,
        )
        if options.train.compile:
            for network in (student, self.targets_of):
                network.backbone.compile_blocks()

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the networks and of the optimizer."""
        return self.options.train.shard == "full" and self.ranks.world_size > 1

    def place_networks(self) -> None:
        """From the CPU to the device: whole, or this process's part."""
        networks: list[nn.Module] = [self.student, self.teacher, self.targets_of]
        if self.gram is not None:
            networks.append(self.gram.backbone)
        for network in dict.fromkeys(networks):
            if self.sharded:
                sharding.shard(network, self.cutter.device, self.ranks)
            else:
                network.to(self.cutter.device)

    def train(self, report: TrainingReport | NoReport) -> None:
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

    @property
    def asked_to_stop(self) -> int:
        """The signal that asked the run to stop after this step, or 0; the same in all."""
        return self.agreement.asked() if self.ranks.world_size == 1 else self.agreement.stop

    def next_step(self, report: TrainingReport | NoReport, snapshots: Snapshots) -> None:
        """One step, and what is recorded, looked at and saved after it."""
        started = time.perf_counter()
        steps, every = self.options.train.steps, self.options.checkpoint.every
        step, values = self.done, self.values()
        if self.saver.over:
            self.saver.saved(report)
        try:
            set_values(self.optimizer, self.student, values)
            result = self.gradients(step, values, self.health.sampling(step))
            self.health.before_update(result, self.student, self.teacher)
            norm = self.update(step, result, values)
        except NotFiniteError as error:
            self.optimizer.zero_grad(set_to_none=True)
            if not skips(self, str(error), report):
                return
            self.done = step + 1
            seconds = time.perf_counter() - started
            report.step(self.numbers({"skipped": 1}, values, seconds), self.health.word())
        else:
            self.recovery.in_a_row = 0
            seen = self.health.after_update(self.student, self.teacher)
            self.done = step + 1
            terms = result.terms | {"gradient_norm": norm} | seen
            numbers = self.numbers(terms, values, time.perf_counter() - started)
            for finding in self.health.judge(numbers):
                report.finding(finding.paragraph())
            with self.agreement.this_rank_only(joint=self.sharded):
                numbers |= self.evaluated()
            report.step(numbers, self.health.word())
            self.look(snapshots)
        stop = self.health.stop()
        self.stopping = self.asked_to_stop
        last = bool(self.done == steps or stop or self.stopping)
        # What is saved between skipped steps would push out the checkpoints before them.
        due = self.done % every == 0 and not self.recovery.in_a_row
        if due:
            self.recovery.back_to = self.done
        if due or last:
            self.save(report, last)
        if stop:
            raise self.collapsed(stop)

    def look(self, snapshots: Snapshots) -> None:
        """A snapshot, if there is to be one after this step."""
        with self.agreement.this_rank_only(joint=self.sharded):
            snapshots.take(self.done, self.teacher, self.source, self.cutter, self.ranks)

    def values(self) -> StepValues:
        """What is scheduled for the next step."""
        values = values_at(self.done, self.options)
        return replace(values, lr=values.lr * self.recovery.lr_factor)

    def gradients(self, step: int, values: StepValues, sampling: Probe | None = None) -> StepResult:
        """Of the whole effective batch of a step, left in ``.grad``; see effective_batch.py.

        Raises: NotFiniteError.
        """
        micro_batch = self.options.train.micro_batch
        assert isinstance(micro_batch, int)
        window = self.window(step)
        self.optimizer.zero_grad(set_to_none=True)
        result = self.effective_batch.backward(
            partial(self.micro_batches, window),
            window.images,
            micro_batch,
            self.centers,
            self.queues,
            values.teacher_temperature,
            self.gram_term(values.gram_weight),
            sampling,
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
        clip = self.options.optim.clip or math.inf
        norm = float(sharding.whole(nn.utils.clip_grad_norm_(self.student.parameters(), clip)))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient norm is {norm}")
        self.optimizer.step()
        update_teacher(self.teacher, self.student, values.momentum)
        self.centers, self.queues = result.next_centers, result.next_queues
        self.gram = next_gram_teacher(self.gram, self.teacher.backbone, step + 1, self.options.gram)
        return norm

    def gram_term(self, weight: float) -> GramTerm | None:
        """Gram anchoring with a step's weight, if there is any."""
        if self.gram is None or not weight:
            return None
        return GramTerm(self.gram.backbone, weight, self.options.gram.resize)

    def window(self, step: int, sizes: CropSizes | None = None) -> BatchPlan:
        """The draws of a step; crops of other sizes than those drawn if they are given."""
        backbone = self.student.backbone
        depth, patch_size = backbone.depth, backbone.patch_size
        return draw_batch_plan(
            self.options, step, self.images, depth, patch_size, sizes, self.strata
        )

    def micro_batches(self, window: BatchPlan) -> Iterator[MicroBatch]:
        """The share of a window that is this process's, a micro-batch at a time."""
        size = self.options.train.micro_batch
        assert isinstance(size, int)
        for micro in micro_batches(window, size, self.source, self.cutter, self.ranks):
            yield micro
            self.progress += 1

    def fill_queues(self) -> None:
        """Before the first step: the teacher's outputs for images drawn as for steps of their own.

        A queue is full from the first step on. Steps to fill it are counted from ``FILLING``,
        where no run gets to.
        """
        step = FILLING
        while len(self.queues.dino_QD) < self.queues.length:
            parts = self.micro_batches(self.window(step))
            _, _, cls_RD, patches_MD = self.effective_batch.bottlenecks(parts)
            self.queues = self.queues.next(cls_RD, patches_MD)
            step += 1

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

    def numbers(
        self, terms: dict[str, float], values: StepValues, seconds: float
    ) -> dict[str, Any]:
        """What is recorded of a step. Each image of the effective batch is counted once."""
        batch = self.options.train.effective_batch
        return {
            "step": self.done,
            "images": self.done * batch,
            **terms,
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "teacher_momentum": values.momentum,
            "teacher_temperature": values.teacher_temperature,
            **self.queue_age(),
            **({"gram_weight": values.gram_weight} if "gram" in terms else {}),
            "images_per_second": batch / seconds,
            "memory_gib": peak_memory_gib(self.cutter.device),
        }

    def evaluated(self) -> dict[str, float]:
        """The online evaluation after this step, if it is due."""
        takes_part = self.ranks.rank == 0 or self.sharded  # each has a part of the teacher
        if self.online is None or not takes_part or not self.online.due(self.done):
            return {}
        started = time.perf_counter()
        figures = self.online.evaluate(self.teacher.backbone)
        return figures | {"online/seconds": time.perf_counter() - started}

    def queue_age(self) -> dict[str, int]:
        """How many steps ago the oldest row of the CLS queue was made, if there is a queue."""
        if not self.queues.length:
            return {}
        rows = GLOBAL_VIEWS * self.options.train.effective_batch
        return {"queue_age": math.ceil(self.queues.length / rows)}

    def save(self, report: TrainingReport | NoReport, last: bool = False) -> None:
        """A checkpoint, and the teacher's backbone as transformers saves it; by one process.

        Args:
            report: told what could not be saved.
            last: wait for it to be written.

        Raises: UserError if the last one cannot be written; of others there is a next one.
        """
        if not self.sharded:
            check_alike(self.student, self.ranks)
        state = state_of(self)
        if self.ranks.rank > 0:
            return
        self.saver.saved(report)
        self.saver.begin(self.done, state)
        if last:
            with self.agreement.this_rank_only():
                self.saver.saved(report, last)

    def resume(
        self, say: Callable[[str], None] = lambda line: None, up_to: int | None = None
    ) -> None:
        """Take up the run's newest checkpoint; see ``state.take_up``."""
        take_up(self, say, up_to)

    def try_micro_batch(self, size: int) -> None:
        """Forward and backward of one micro-batch, or of two if a step has more than one.

        As in a step: with gradients of the micro-batch before, and with KoLeo over both. For
        finding what fits, and how long it takes. Nothing is changed.
        """
        largest = max(crop_sizes(self.options), key=lambda sizes: sizes.global_size)
        images = min(
            2 * size, largest_share(self.options.train.effective_batch, self.ranks.world_size)
        )
        spans = [slice(0, size), slice(size, images)] if images > size else [slice(0, images)]
        window = self.window(0, largest)

        def some() -> Iterator[MicroBatch]:
            return load(window, spans, self.source, self.cutter)

        weight = self.options.loss.koleo_weight if images > 1 else 0.0
        loss = self.options.loss.model_copy(
            update={"koleo_group": "effective", "koleo_weight": weight}
        )
        gram = self.gram_term(self.options.gram.weight)
        # Alone, as others may not have room for it.
        alone = replace(self.effective_batch, ranks=ALONE, agreement=Agreement(), loss=loss)
        temperature = self.options.teacher.temperature
        self.optimizer.zero_grad(set_to_none=True)
        try:
            alone.backward(some, images, size, self.centers, self.queues, temperature, gram)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
