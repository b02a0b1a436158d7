"""A window of random images and a step in float64, whose gradients the tests compare."""

from dataclasses import replace

import numpy as np
import torch

from dino_x.config.presets import check
from dino_x.config.resolve import Facts, resolve
from dino_x.data.loading.loader import Canvases
from dino_x.exact import CenteringState, KoLeo
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.machine.device import dtype_of
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter, draw_batch_plan
from dino_x.training.step.gram import GramTeacher
from dino_x.training.step.planned_batch import PlannedBatch
from dino_x.training.steps import Steps
from dino_x.views.extra import checked_extra
from tests.tiny import TINY

IMAGES = 80  # so that no image is twice in the window


class RandomImages:
    """An image source in memory, of images with one channel or with colours."""

    def __init__(self, channels: int = 1) -> None:
        rng = np.random.default_rng(3)
        self.pixels = torch.from_numpy(rng.random((IMAGES, channels, 40, 40)))
        self.aspect = torch.from_numpy(rng.uniform(0.6, 1.6, IMAGES))

    def prefetch(self, batches):
        for indices in batches:
            yield Canvases(self.pixels[indices], self.aspect[indices])


CPU = torch.device("cpu")


class Bench:
    """One step of a run, cut into micro-batches of any size; the same numbers on any device.

    Args:
        device: where it is computed.
        ranks: the processes that share it.
        channels: of the images; 3 for colours.
        settings: options as ``section__key``.
    """

    def __init__(
        self, device: torch.device = CPU, ranks: Ranks = ALONE, channels: int = 1, **settings
    ) -> None:
        overrides = TINY | {
            "train.effective_batch": 16, "train.steps": 10, "train.precision": "fp64",
            "loss.centering": "sinkhorn", "optim.freeze_last_layer": 0,
            "model.layerscale": 0.5,  # so that two layers matter, and targets are not uniform:
            # In two layers 0.3 would often drop both attentions: CLS tokens that see no image, all
            # alike, whose pull on each other drowns every other gradient.
            "model.drop_path": 0.1,
            "head.init": "fan_in", "head.normalize_prototypes": True,
        }  # fmt: skip
        overrides |= {name.replace("__", "."): value for name, value in settings.items()}
        self.options = resolve(overrides, Facts(IMAGES)).options
        check(overrides)
        dtype = dtype_of(self.options.train.precision)
        extra = checked_extra(self.options, channels, device, dtype)
        cutter = Cutter(self.options, [0.5] * 3, [0.25] * 3, device, dtype, extra)
        self.steps = Steps(self.options, RandomImages(channels), IMAGES, cutter, ranks=ranks)
        # A teacher that is not the student, and centers that are not zero, as after some steps.
        torch.manual_seed(5)
        with torch.no_grad():
            for weight in self.steps.teacher.parameters():
                noise = torch.randn_like(weight, device="cpu")
                weight.add_(noise.to(device), alpha=0.02)
        state = self.steps.state.centering
        dino_K, ibot_K = state.dino.center_K, state.ibot.center_K.clone()
        for center_K in (dino_K, ibot_K):
            center_K.copy_(torch.empty_like(center_K, device="cpu").normal_(std=0.05))
        self.state = CenteringState(state.dino, replace(state.ibot, center_K=ibot_K))
        backbone = self.steps.student.backbone
        self.plan = draw_batch_plan(self.options, 4, IMAGES, backbone.depth, backbone.patch_size)
        self.temperature = values_at(4, self.options).teacher_temperature

    def take_gram_teacher(self):
        """A Gram teacher that is neither student nor teacher."""
        torch.manual_seed(9)
        gram = GramTeacher.copy_of(self.steps.teacher.backbone)
        with torch.no_grad():
            for weight in gram.backbone.parameters():
                noise = torch.randn_like(weight, device="cpu")
                weight.add_(noise.to(weight.device), alpha=0.05)
        self.steps.state.gram = gram

    def batch(self, size):
        steps = self.steps
        return PlannedBatch.of(self.plan, size, steps.source, steps.cutter, steps.ranks)

    def micro_batches(self, size):
        return self.batch(size).micro_batches()

    def exact(self, size):
        """Terms and gradient of the effective batch, in micro-batches of ``size``."""
        return self._collect([self.batch(size)], self.steps.exact_step)

    def naive(self, size):
        """As other tools accumulate: each micro-batch a batch of its own, gradients averaged."""
        step = self.steps.exact_step
        statistic = step.statistic
        if isinstance(statistic, KoLeo):
            statistic = replace(statistic, group=size)
        of_micro_batches = replace(step, statistic=statistic)
        return self._collect(self.batch(size).each_alone(), of_micro_batches)

    def _collect(self, batches, step):
        trainer, terms = self.steps, {}
        trainer.state.optimizer.zero_grad(set_to_none=True)
        gram = trainer.gram_term(self.options.gram.weight)
        for batch in batches:
            result = step.gradient(batch, self.state, self.temperature, gram)
            for name, value in result.terms.items():
                terms[name] = terms.get(name, 0) + value
        gradient = torch.cat(
            [
                torch.zeros_like(weight).flatten() if weight.grad is None else weight.grad.flatten()
                for weight in trainer.student.parameters()
            ]
        )
        return terms, gradient, result.next_state


def relative_error(value, reference):
    """Norm of the difference against the norm of the reference."""
    return float((value - reference).norm() / reference.norm())
