"""The optimizer steps of a run: everything but the loop around them and the RUN folder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dino_x.config.options import CropSizes, Options
from dino_x.config.resolve import with_values
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.sampler import Strata
from dino_x.distributed.agreement import Agreement
from dino_x.distributed.processes import processes_of
from dino_x.distributed.shares import largest_share
from dino_x.exact import CenteringState, KoLeo, SIGReg, StepResult, update_teacher
from dino_x.exact.probe import NO_PROBE, StepProbe
from dino_x.exact.statistics import BatchStatistic
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.machine.products import fast_products
from dino_x.model.backbone import Backbone
from dino_x.model.teacher import Network
from dino_x.training.build import build, statistic_of, step_of_run
from dino_x.training.optimizer import clip_gradients, set_values
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.step.batch_plan import BatchPlan, Cutter, ImageSource, draw_batch_plan
from dino_x.training.step.gram import GramTeacher, GramTerm, next_gram_teacher
from dino_x.training.step.passes import Passes
from dino_x.training.step.planned_batch import PlannedBatch
from dino_x.training.train_state import TrainState
from dino_x.views.sizes import crop_sizes

FILLING = 2**40  # steps that only fill the queue are counted from here


def nobody(passes: Passes) -> None:
    """Watches a step without looking."""


@dataclass
class Steps:
    """Networks and optimizer, and what one step does. All state changes in ``update``, once a step.

    Attributes:
        options: resolved.
        source: canvases by image index.
        images: how many there are.
        cutter: makes crops of canvases.
        backbone: the student's, if it is loaded already.
        strata: which images should not come together, if that is known.
        ranks: the processes that share the steps; all have the same state.
        state: what a checkpoint holds.
        targets_of: the network that makes targets: the teacher, or one that is distilled.
        agreement: what the processes tell each other.
        exact_step: the gradient of the effective batch.
        progress: changes while this process gets on.
        passes: how far the step under way is.
        watch: told of it after each micro-batch.
    """

    options: Options
    source: ImageSource
    images: int
    cutter: Cutter
    backbone: Backbone | None = None
    strata: Strata | Layout | None = None
    ranks: Ranks = ALONE
    state: TrainState = field(init=False)
    progress: int = field(default=0, init=False)
    passes: Passes = field(default_factory=Passes, init=False)
    watch: Callable[[Passes], None] = field(default_factory=lambda: nobody, init=False)

    def __post_init__(self) -> None:
        options, device = self.options, self.cutter.device
        built = build(options, device, self.backbone, self.ranks, sharded=self.sharded)
        self.state, self.targets_of = built.state, built.targets_of
        self.agreement = Agreement(self.ranks, device)
        processes = processes_of(self.agreement, sharded=self.sharded)
        self.exact_step = step_of_run(options, built, device, processes)
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
    def sharded(self) -> bool:
        """Whether each process has a part of the networks and of the optimizer."""
        return self.options.train.shard == "full" and self.ranks.world_size > 1

    def use_micro_batch(self, size: int) -> None:
        """Go through the effective batch so many images at a time; nothing else depends on it."""
        self.options = with_values(self.options, {"train.micro_batch": size})

    def begin(self) -> StepValues:
        """What is scheduled for the next step, put into the optimizer."""
        values = values_at(self.state.done, self.options)
        values = replace(values, lr=values.lr * self.state.recovery.lr_factor)
        set_values(self.state.optimizer, self.student, values)
        return values

    def gradients(self, step: int, values: StepValues, probe: StepProbe = NO_PROBE) -> StepResult:
        """Of the whole effective batch of a step, left in ``.grad``; see exact/step.py.

        Raises: NotFiniteError.
        """
        self.state.optimizer.zero_grad(set_to_none=True)
        exact_step = replace(
            self.exact_step,
            statistic=statistic_of(self.options, step),
            local_weight=values.local_weight,
        )
        batch = self.batch(self.plan(step))
        self.passes = passes_of(batch, exact_step.statistic)
        with fast_products(self.cutter.device):
            result = exact_step.gradient(
                batch,
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
        norm = clip_gradients(self.student, self.options.optim)
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient norm is {norm}")
        state.optimizer.step()
        update_teacher(self.teacher, self.student, values.momentum)
        state.centering = result.next_state
        state.gram = next_gram_teacher(
            self.gram, self.teacher.backbone, step + 1, self.options.gram
        )
        return norm

    def gram_term(self, weight: float) -> GramTerm | None:
        """Gram anchoring with a step's weight, if there is any."""
        if self.gram is None or not weight:
            return None
        patch_size, gram = self.student.backbone.patch_size, self.options.gram
        return GramTerm(self.gram.backbone, patch_size, weight, gram.resize, gram.antialias)

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
        """Note that this process gets on, and say so."""
        self.progress += 1
        self.passes.done += 1
        self.watch(self.passes)

    def fill_queues(self) -> None:
        """Before the first step: the teacher's outputs for images drawn as for steps of their own.

        A queue is full from the first step on. Steps to fill it are counted from ``FILLING``,
        where no run gets to.
        """
        step = FILLING
        dino, ibot = self.state.centering.dino, self.state.centering.ibot
        while len(dino.queue_QD) < dino.length:
            batch = self.batch(self.plan(step))
            self.passes = Passes(("filling the queue",), len(batch.spans))
            with fast_products(self.cutter.device):
                _, _, cls_RD, patches_MD = self.exact_step.bottlenecks(batch)
            dino, ibot = dino.after(cls_RD, dino.center_K), ibot.after(patches_MD, ibot.center_K)
            step += 1
        self.state.centering = CenteringState(dino, ibot)

    def statistic_over(self, images: int) -> KoLeo | SIGReg:
        """The term that looks at the whole batch, over so many images; off for a single one."""
        statistic = statistic_of(self.options, step=0)
        if images == 1:
            return replace(statistic, weight=0.0)
        return replace(statistic, group=images) if isinstance(statistic, KoLeo) else statistic

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
        alone = replace(  # as others may not have room for it
            self.exact_step,
            processes=processes_of(Agreement(), sharded=self.sharded),
            statistic=self.statistic_over(images),
        )
        gram, temperature = self.options.gram.weight, self.options.teacher.temperature
        self.state.optimizer.zero_grad(set_to_none=True)
        try:
            with fast_products(self.cutter.device):
                alone.gradient(batch, self.state.centering, temperature, self.gram_term(gram))
        finally:
            self.state.optimizer.zero_grad(set_to_none=True)


def passes_of(batch: PlannedBatch, statistic: BatchStatistic) -> Passes:
    """The passes of a step: a second one where the statistic spans micro-batches."""
    spanning = statistic.weight and statistic.spans(batch.sizes, batch.images)
    names = ("targets", "statistic", "gradients") if spanning else ("targets", "gradients")
    return Passes(names, len(batch.spans))
