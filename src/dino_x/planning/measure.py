"""A short trial of real steps on this machine: seconds an image, and memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dino_x.config.options import Options
from dino_x.cost.shapes import Step
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.distributed.shares import divisors
from dino_x.machine.device import dtype_of, peak_memory_gib
from dino_x.model.backbone import Backbone
from dino_x.training.micro_batch import find, largest_by_calculation
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps
from dino_x.views.extra import checked_extra

BUDGET = 25.0  # seconds of a trial, about
TIMES = 3  # at most; the fastest counts, as other programs only ever slow it down


@dataclass(frozen=True)
class Trial:
    """The measurements of a trial.

    Attributes:
        device: the name of the device.
        images: the number of images that went through the network together.
        seconds: seconds an image, of one process.
        memory_gib: peak memory, of the GPU or of the process.
        reading: images a second that are read and decoded; None without data.
    """

    device: str
    images: int
    seconds: float
    memory_gib: float
    reading: float | None = None


class RepeatedCanvases:
    """An image source that always has the same canvases, repeated to the number asked for."""

    def __init__(self, canvases: Canvases) -> None:
        self.canvases = canvases

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """Yields as many canvases for each batch as it has indices."""
        held = self.canvases
        for indices in batches:
            rows = torch.arange(len(indices)) % len(held.pixels)
            size_mm = None if held.size_mm is None else held.size_mm[rows]
            hounsfield = None if held.hounsfield is None else held.hounsfield[rows]
            yield Canvases(held.pixels[rows], held.aspect[rows], size_mm, hounsfield)


def made_up(count: int, channels: int, side: int) -> Canvases:
    """Noise in the shape of canvases."""
    pixels = np.random.default_rng(0).random((count, channels, side, side), np.float32)
    return Canvases(torch.from_numpy(pixels), torch.ones(count))


def read_some(loader: Loader, count: int, images: int) -> tuple[Canvases, float]:
    """Canvases of the first images, and the number of images read and decoded a second."""
    started = time.perf_counter()
    canvases = loader.batch(np.arange(count) % images)
    return canvases, min(count, images) / (time.perf_counter() - started)


def trial_steps(
    options: Options, backbone: Backbone, canvases: Canvases, images: int, device: torch.device
) -> Steps:
    """The steps of a run that trains nothing and writes nothing."""
    dtype = dtype_of(options.train.precision)
    extra = checked_extra(options, canvases.pixels.shape[1], device, dtype)
    cutter = Cutter(options, backbone.mean, backbone.std, device, dtype, extra)
    return Steps(options, RepeatedCanvases(canvases), images, cutter, backbone)


def choose(step: Step, steps: Steps) -> int:
    """The micro-batch for ``auto`` on this machine."""
    return find(step, steps.cutter.device, steps.try_micro_batch).size


def trial(steps: Steps, micro_batch: int, device_name: str, reading: float | None = None) -> Trial:
    """Forward and backward of the largest micro-batch that there is time for, several times.

    One image is measured first; its time says how many images there is time for.
    """
    started = time.perf_counter()
    one = seconds(steps, 1)
    if time.perf_counter() - started < BUDGET / 4:  # the first of all is slow
        one = seconds(steps, 1)
    sizes = divisors(micro_batch)
    most = max(1.0, BUDGET / 2 / (2 * one))  # a try is of two micro-batches
    size = largest_by_calculation(sizes, float, most) or 1
    if steps.cutter.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(steps.cutter.device)
    best = one if size == 1 else seconds(steps, size)
    for _ in range(TIMES - 1):
        if time.perf_counter() - started + best * size > BUDGET:
            break
        best = min(best, seconds(steps, size))
    peak = peak_memory_gib(steps.cutter.device)
    return Trial(device_name, size, best, peak, reading)


def seconds(steps: Steps, size: int) -> float:
    """The seconds of one try, an image."""
    device = steps.cutter.device
    share = steps.options.train.effective_batch // steps.ranks.world_size
    started = time.perf_counter()
    steps.try_micro_batch(size)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / min(2 * size, share)
