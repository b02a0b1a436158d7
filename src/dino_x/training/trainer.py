"""The training loop."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from dino_x.config import Options
from dino_x.errors import UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.model.backbone import save_vit
from dino_x.model.teacher import Network, build_student, build_teacher, update_teacher
from dino_x.training import checkpoint
from dino_x.training.device import autocast, dtype_of, peak_memory_gib
from dino_x.training.effective_batch import Centers, EffectiveBatch, WindowResult
from dino_x.training.health import Finding, Health
from dino_x.training.online import Online
from dino_x.training.optimizer import build_optimizer, set_values
from dino_x.training.queue import Queues
from dino_x.training.report import TrainingReport
from dino_x.training.run import RunFolder, lines
from dino_x.training.sample import Sampling
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.window import (
    GLOBAL_VIEWS,
    Cutter,
    ImageSource,
    MicroBatch,
    Window,
    draw_window,
    micro_batches,
)

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
        online: evaluates the teacher now and then, if there is one.
    """

    options: Options
    run: RunFolder
    source: ImageSource
    images: int
    images_hash: str
    cutter: Cutter
    done: int = 0
    online: Online | None = None
    student: Network = field(init=False)
    teacher: Network = field(init=False)

    def __post_init__(self) -> None:
        options, device = self.options, self.cutter.device
        student = build_student(options).to(device, dtype_of(options.train.precision))
        self.student, self.teacher = student, build_teacher(student)
        self.optimizer = build_optimizer(student, options.optim)
        zeros = torch.zeros(options.head.prototypes, device=device, dtype=self.cutter.dtype)
        self.centers = Centers(zeros, zeros.clone())
        bottleneck = zeros.new_empty(options.head.bottleneck)
        self.queues = Queues.empty(options.loss.queue, bottleneck)
        self.health = Health(options, student.backbone.width, self.run.health)
        self.effective_batch = EffectiveBatch(
            student,
            self.teacher,
            options.loss,
            autocast(options.train.precision, device),
        )

    def train(self, report: TrainingReport) -> None:
        """From the step after the last finished one to the end."""
        steps, every = self.options.train.steps, self.options.checkpoint.every
        assert steps is not None
        if self.done == 0:
            self.fill_queues()
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
            stop = self.health.stop()
            if self.done % every == 0 or self.done == steps or stop:
                self.save()
            if stop:
                raise self.collapsed(stop)

    def gradients(
        self, step: int, values: StepValues, sampling: Sampling | None = None
    ) -> WindowResult:
        """Of the whole effective batch of a step, left in ``.grad``; see effective_batch.py."""
        train = self.options.train
        assert isinstance(train.micro_batch, int)
        window = self.window(step)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            result = self.effective_batch.backward(
                partial(micro_batches, window, train.micro_batch, self.source, self.cutter),
                window.images,
                train.micro_batch,
                self.centers,
                self.queues,
                values.teacher_temperature,
                sampling,
            )
        except NotFiniteError as error:
            raise self.not_finite(step, str(error)) from error
        for name, value in result.terms.items():
            if not math.isfinite(value):
                raise self.not_finite(step, f"{name} is {value}")
        return result

    def update(self, step: int, result: WindowResult, values: StepValues) -> float:
        """Clip, optimizer, teacher, centers: everything that changes, once. The gradient norm."""
        clip = self.options.optim.clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.student.parameters(), clip))
        if not math.isfinite(norm):
            raise self.not_finite(step, f"the gradient norm is {norm}")
        self.optimizer.step()
        update_teacher(self.teacher, self.student, values.momentum)
        self.centers, self.queues = result.next_centers, result.next_queues
        return norm

    def window(self, step: int) -> Window:
        """The draws of a step."""
        backbone = self.student.backbone
        return draw_window(self.options, step, self.images, backbone.depth, backbone.patch_size)

    def fill_queues(self) -> None:
        """Before the first step: the teacher's outputs for images drawn as for steps of their own.

        A queue is full from the first step on. Steps to fill it are counted from ``FILLING``,
        where no run gets to.
        """
        micro_batch, step = self.options.train.micro_batch, FILLING
        assert isinstance(micro_batch, int)
        while len(self.queues.dino_QD) < self.queues.length:
            window = self.window(step)
            parts = micro_batches(window, micro_batch, self.source, self.cutter)
            _, _, cls_RD, patches_MD = self.effective_batch.bottlenecks(parts)
            self.queues = self.queues.next(cls_RD, patches_MD)
            step += 1

    def not_finite(self, step: int, what: str) -> UserError:
        """The error for a loss that is no number: where the last good state is."""
        self.health.not_finite(step + 1, what)
        saved = checkpoint.checkpoints(self.run.checkpoints)
        good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was made yet"
        return UserError(
            f"stopped at step {step + 1}: {what}; {good}; try a lower optim.lr, a longer"
            " optim.warmup or --precision fp32"
        )

    def collapsed(self, finding: Finding) -> UserError:
        """The error for a run that has to stop for its health: what, and what may help."""
        saved = checkpoint.checkpoints(self.run.checkpoints)[-1]
        return UserError(
            f"stopped after step {self.done}: {finding.state} since step {finding.since}:"
            f" {finding.seen}; checkpoint {saved}; in a new run try"
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
            "images_per_second": batch / seconds,
            "memory_gib": peak_memory_gib(self.cutter.device),
        }

    def evaluated(self) -> dict[str, float]:
        """The online evaluation after this step, if it is due."""
        if self.online is None or not self.online.due(self.done):
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

    def save(self) -> None:
        """A checkpoint, and the teacher's backbone as transformers saves it."""
        state = {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "centers": {"dino": self.centers.dino_K, "ibot": self.centers.ibot_K},
            "queues": {"dino": self.queues.dino_QD, "ibot": self.queues.ibot_QD},
            "images_hash": self.images_hash,
        }
        checkpoint.save(self.run.checkpoints, self.done, state, self.options.checkpoint.keep)
        backbone = self.teacher.backbone
        save_vit(
            backbone.vit.state_dict(),
            backbone,
            self.run.model,
            self.options.views.global_size,
            self.cutter.mean,
            self.cutter.std,
        )

    def resume(self) -> None:
        """Take up the newest checkpoint of the run, if there is one.

        Raises: UserError if the images are not those it was trained on.
        """
        state = checkpoint.load_newest(self.run.checkpoints, self.cutter.device)
        if state is None:
            return
        if state["images_hash"] != self.images_hash:
            raise UserError(
                f"the images are not those {self.run.path} was trained on (files were added,"
                " removed or changed in size); put them back, or start a new run"
            )
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.centers = Centers(state["centers"]["dino"], state["centers"]["ibot"])
        queues = state["queues"]
        self.queues = Queues(self.options.loss.queue, queues["dino"], queues["ibot"])
        self.done = state["step"]
        self.run.truncate_metrics(self.done)
        self.health.resume(lines(self.run.metrics, self.done), lines(self.run.health, self.done))

    def try_micro_batch(self, size: int) -> None:
        """One forward and backward of ``size`` images; for finding what fits."""

        def one() -> Iterator[MicroBatch]:
            yield next(micro_batches(self.window(0), size, self.source, self.cutter))

        self.effective_batch.backward(
            one, size, size, self.centers, self.queues, self.options.teacher.temperature
        )
        self.optimizer.zero_grad(set_to_none=True)
