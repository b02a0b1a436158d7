"""The steps of a run on images made on the spot, to measure what is calculated."""

from pathlib import Path

import numpy as np
import torch

from dino_x.config.resolve import Facts, resolve
from dino_x.cost.shapes import Step
from dino_x.data.loading.loader import Canvases
from dino_x.machine.device import dtype_of
from dino_x.training.optimizer import set_values
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps

SMALL = {
    "preset": "dinov3", "model.name": "vit-tiny", "model.depth": 4, "head.prototypes": 2048,
    "views.global_size": 112, "views.local_size": 48, "views.local_crops": 4, "train.steps": 10,
    "train.effective_batch": 8, "loss.centering": "sinkhorn", "optim.freeze_last_layer": 0,
    "optim.warmup": 1,
}  # fmt: skip
CANVAS = 160


class Noise:
    """An image source in memory."""

    def prefetch(self, batches):
        for indices in batches:
            pixels = torch.from_numpy(
                np.random.default_rng(0).random((len(indices), 1, CANVAS, CANVAS), np.float32)
            )
            yield Canvases(pixels, torch.ones(len(indices)))


def steps_of(path: Path, micro_batch: int, **settings) -> Steps:
    """Ready for its second step: the optimizer has its state."""
    overrides = SMALL | {"train.micro_batch": micro_batch}
    overrides |= {name.replace("__", "."): value for name, value in settings.items()}
    options = resolve(overrides, Facts(100)).options
    dtype = dtype_of(options.train.precision)
    cutter = Cutter(options, [0.5] * 3, [0.25] * 3, torch.device("cpu"), dtype)
    steps = Steps(options, Noise(), 100, cutter)
    steps.fill_queues()
    values = values_at(2, options)
    set_values(steps.state.optimizer, steps.student, values)
    steps.update(0, steps.gradients(0, values), values)
    steps.state.optimizer.zero_grad(set_to_none=True)
    return steps


def step_of(steps: Steps) -> Step:
    """The same as numbers."""
    gram = None if steps.gram is None else steps.gram.backbone
    micro_batch = steps.options.train.micro_batch
    return Step.of(steps.options, steps.student, gram=gram, micro_batch=micro_batch, canvas=CANVAS)
