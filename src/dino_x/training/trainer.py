"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from dino_x.config import CropSizes, Options
from dino_x.data.sampler import Strata
from dino_x.errors import SaidElsewhereError, UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.model.backbone import Backbone, save_vit
from dino_x.model.pretrained import prepared_with
from dino_x.model.teacher import Network, build_student, build_teacher, update_teacher
from dino_x.training import checkpoint
from dino_x.training.device import autocast, dtype_of, peak_memory_gib
from dino_x.training.distillation import distilled_teacher, fingerprint
from dino_x.training.effective_batch import Centers, EffectiveBatch, WindowResult
from dino_x.training.gram import (
    GramTeacher,
    GramTerm,
    first_gram_teacher,
    next_gram_teacher,
)
from dino_x.training.health import Finding, Health
from dino_x.training.online import Online
from dino_x.training.optimizer import build_optimizer, set_values
from dino_x.training.queue import Queues
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.run import RunFolder, lines
from dino_x.training.sample import Sampling
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.snapshots import Snapshots
from dino_x.training.start import take_heads
from dino_x.training.window import (
    GLOBAL_VIEWS,
    Cutter,
    ImageSource,
    MicroBatch,
    Window,
    draw_window,
    micro_batches,
)
from dino_x.training.world import check_alike
from dino_x.views.sizes import crop_sizes

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
        student = student.to(device, dtype_of(options.train.precision))
        self.student, self.teacher = student, build_teacher(student)
        self.optimizer = build_optimizer(student, options.optim)
        frozen = distilled_teacher(options, student)
        self.targets_of = frozen or self.teacher
        self.distilled = None if frozen is None else fingerprint(frozen)
        zeros = torch.zeros(options.head.prototypes, device=device, dtype=self.cutter.dtype)
        self.centers = Centers(zeros, zeros.clone())
        bottleneck = zeros.new_empty(self.targets_of.dino_head.last_layer.shape[1])
        self.queues = Queues.empty(options.loss.queue, bottleneck)
        health_file = self.run.health if self.ranks.own == 0 else None
        self.health = Health(options, student.backbone.width, health_file)
        self.effective_batch = EffectiveBatch(
            student,
            self.targets_of,
            options.loss,
            autocast(options.train.precision, device),
            distilled=frozen is not None,
            ranks=self.ranks,
        )
        self.gram = first_gram_teacher(options, self.teacher.backbone)

    def train(self, report: TrainingReport | NoReport) -> None:
        """From the step after the last finished one to the end."""
        steps, every = self.options.train.steps, self.options.checkpoint.every
        assert steps is not None
        snapshots = Snapshots(self.run.snapshots, self.options, self.images)
        if self.done == 0:
            self.fill_queues()
            snapshots.take(self.done, self.teacher, self.source, self.cutter, self.ranks)
        for step in range(self.done, steps):
            started = time.perf_counter()
            values = values_at(step, self.options)
            set_values(self.optimizer, self.student, values)
            result = self.gradients(step, values, self.health.sampling(step))
            self.health.before_update(result, self.student, self.teacher)
            norm = self.update(step, result, values)
            seen = self.health.after_update(self.student, self.teacher)
            self.done = step + 1
            numbers = self.numbers(result, values, norm, time.perf_counter() - started) | seen
            for finding in self.health.judge(numbers):
                report.finding(finding.paragraph())
            report.step(numbers | self.evaluated(), self.health.word())
            snapshots.take(self.done, self.teacher, self.source, self.cutter, self.ranks)
            stop = self.health.stop()
            if self.done % every == 0 or self.done == steps or stop:
                self.save(report)
            if stop:
                raise self.collapsed(stop)

    def gradients(
        self, step: int, values: StepValues, sampling: Sampling | None = None
    ) -> WindowResult:
        """Of the whole effective batch of a step, left in ``.grad``; see effective_batch.py."""
        micro_batch = self.options.train.micro_batch
        assert isinstance(micro_batch, int)
        window = self.window(step)
        self.optimizer.zero_grad(set_to_none=True)
        try:
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
        except NotFiniteError as error:
            raise self.not_finite(step, str(error)) from error
        for name, value in result.terms.items():
            if not math.isfinite(value):
                raise self.not_finite(step, f"{name} is {value}")
        return result

    def update(self, step: int, result: WindowResult, values: StepValues) -> float:
        """Clip, optimizer, teacher, centers, Gram teacher: everything that changes, once.

        Returns: the gradient's norm.
        """
        clip = self.options.optim.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.student.parameters(), clip))
        if not math.isfinite(norm):
            raise self.not_finite(step, f"the gradient norm is {norm}")
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

    def window(self, step: int, sizes: CropSizes | None = None) -> Window:
        """The draws of a step; crops of other sizes than those drawn if they are given."""
        backbone = self.student.backbone
        depth, patch_size = backbone.depth, backbone.patch_size
        return draw_window(self.options, step, self.images, depth, patch_size, sizes, self.strata)

    def micro_batches(self, window: Window) -> Iterator[MicroBatch]:
        """The share of a window that is this process's, a micro-batch at a time."""
        size = self.options.train.micro_batch
        assert isinstance(size, int)
        share = self.ranks.share(window.images)
        return micro_batches(window, size, self.source, self.cutter, share)

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

    def not_finite(self, step: int, what: str) -> UserError:
        """The error for a loss that is no number: where the last good state is."""
        self.health.not_finite(step + 1, what)
        kind = UserError if self.ranks.own == 0 else SaidElsewhereError
        return kind(
            f"stopped at step {step + 1}: {what}; {self.last_good()}; try a lower optim.lr, a"
            " longer optim.warmup or --precision fp32"
        )

    def last_good(self) -> str:
        """A clause on what a run can go back to."""
        saved = checkpoint.checkpoints(self.run.checkpoints)
        return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was made yet"

    def collapsed(self, finding: Finding) -> UserError:
        """The error for a run that has to stop for its health: what, and what may help."""
        if self.ranks.own > 0:
            return SaidElsewhereError(finding.seen)
        return UserError(
            f"stopped after step {self.done}: {finding.state} since step {finding.since}:"
            f" {finding.seen}; {self.last_good()}; in a new run try"
            f" {'; or '.join(finding.help) or 'other settings'}; to go on as it is:"
            " --resume --set health.on_collapse=warn"
        )

    def numbers(
        self, result: WindowResult, values: StepValues, norm: float, seconds: float
    ) -> dict[str, Any]:
        """What is recorded of a step. Each image of the effective batch is counted once."""
        batch = self.options.train.effective_batch
        return {
            "step": self.done,
            "images": self.done * batch,
            **result.terms,
            "lr": values.lr,
            "weight_decay": values.weight_decay,
            "teacher_momentum": values.momentum,
            "teacher_temperature": values.teacher_temperature,
            "gradient_norm": norm,
            **self.queue_age(),
            **({"gram_weight": values.gram_weight} if "gram" in result.terms else {}),
            "images_per_second": batch / seconds,
            "memory_gib": peak_memory_gib(self.cutter.device),
        }

    def evaluated(self) -> dict[str, float]:
        """The online evaluation after this step, if it is due."""
        if self.online is None or self.ranks.own > 0 or not self.online.due(self.done):
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

    def save(self, report: TrainingReport | NoReport) -> None:
        """A checkpoint, and the teacher's backbone as transformers saves it; by one process.

        Raises: UserError if that fails after the last step; before it, there is a next time.
        """
        check_alike(self.student, self.ranks)
        if self.ranks.own > 0:
            return
        try:
            self.write()
        except (OSError, SafetensorError) as error:
            line = f"nothing could be saved after step {self.done}: {error}; {self.last_good()}"
            if self.done == self.options.train.steps:
                raise UserError(f"{line}; make room, and finish with --resume") from error
            report.finding(f"{line}; going on, and trying again after the next"
                           f" {self.options.checkpoint.every} steps")  # fmt: skip

    def write(self) -> None:
        """What ``save`` saves."""
        state: dict[str, Any] = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": {"dino": self.centers.dino_K, "ibot": self.centers.ibot_K},
            "queues": {"dino": self.queues.dino_QD, "ibot": self.queues.ibot_QD},
            "images_hash": self.images_hash,
        }
        if self.gram is not None:
            state["gram"] = self.gram.backbone.state_dict()
            state["gram_refreshes"] = self.gram.refreshes
        if self.distilled is not None:
            state["distilled"] = self.distilled
        checkpoint.save(self.run.checkpoints, self.done, state, self.options.checkpoint.keep)
        backbone = self.teacher.backbone
        save_vit(
            backbone.vit.state_dict(),
            backbone,
            self.run.model,
            self.options.views.global_size,
            self.cutter.mean,
            self.cutter.std,
            prepared_with(self.options.data.slices, self.options.windows),
        )

    def resume(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Take up the newest checkpoint of the run that is whole, if there is one.

        ``say`` is told of damaged ones.

        Raises: UserError if the images are not those it was trained on.
        """
        state = checkpoint.load_newest(self.run.checkpoints, self.cutter.device, say)
        if state is None:
            return
        if state["images_hash"] != self.images_hash:
            raise UserError(
                f"the images are not those {self.run.path} was trained on (files were added,"
                " removed or changed in size); put them back, or start a new run"
            )
        if state.get("distilled") != self.distilled:
            raise UserError(
                f"teacher.model '{self.options.teacher.model}' is not the model that"
                f" {self.run.path} was distilled from; put it back, or start a new run"
            )
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centers = Centers(state["centers"]["dino"], state["centers"]["ibot"])
        queues = state["queues"]
        self.queues = Queues(self.options.loss.queue, queues["dino"], queues["ibot"])
        self.gram = self.resumed_gram(state)
        self.done = state["step"]
        if self.ranks.own == 0:
            self.run.truncate_metrics(self.done)
        self.health.resume(lines(self.run.metrics, self.done), lines(self.run.health, self.done))

    def resumed_gram(self, state: dict[str, Any]) -> GramTeacher | None:
        """The Gram teacher of a checkpoint."""
        if "gram" not in state:
            return None
        refreshes = state["gram_refreshes"]
        if self.gram is None or refreshes:  # then it was the EMA teacher once
            gram = GramTeacher.copy_of(self.teacher.backbone, refreshes)
        else:
            gram = self.gram
        gram.backbone.load_state_dict(state["gram"])
        return gram

    def try_micro_batch(self, size: int) -> None:
        """Forward and backward of one micro-batch, or of two if a step has more than one.

        As in a step: with gradients of the micro-batch before, and with KoLeo over both. For
        finding what fits, and how long it takes. Nothing is changed.
        """
        largest = max(crop_sizes(self.options), key=lambda sizes: sizes.global_size)
        share = self.options.train.effective_batch // self.ranks.count
        images = min(2 * size, share)
        window = self.window(0, largest)

        def some() -> Iterator[MicroBatch]:
            return micro_batches(window, size, self.source, self.cutter, slice(0, images))

        weight = self.options.loss.koleo_weight if images > 1 else 0.0
        loss = self.options.loss.model_copy(
            update={"koleo_group": "effective", "koleo_weight": weight}
        )
        gram = self.gram_term(self.options.gram.weight)
        # Alone, as others may not have room for it.
        alone = replace(self.effective_batch, ranks=ALONE, loss=loss)
        temperature = self.options.teacher.temperature
        self.optimizer.zero_grad(set_to_none=True)
        try:
            alone.backward(some, images, size, self.centers, self.queues, temperature, gram)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
