"""What does an exact effective batch cost against naive accumulation, at the same micro-batch?

    python benchmarks/exact_overhead.py [--models vits16 vitb16] [--batch 32] [--micro-batch 8]

One step's gradients (views, forward, losses, backward; no optimizer) on random images, with 8 local
crops and 65,536 prototypes, in three ways:

    naive      each micro-batch a batch of its own: targets, KoLeo and gradient, then the sum
    targets    Sinkhorn-Knopp over the effective batch, KoLeo within micro-batches
    all        KoLeo over it as well: one more forward of the global crops

The ways take turns, and what is compared is their processor time: the machine may be busy. On a GPU
it is seconds. Operations are counted too, of matrix products alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from dino_x.config.resolve import Facts, resolve
from dino_x.data.loading.loader import Canvases
from dino_x.exact.statistics import KoLeo
from dino_x.machine.device import choose_device, describe_device, dtype_of
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps

IMAGES, SIDE, STEP = 64, 256, 50


class Noise:
    """Random grey canvases, made once."""

    def __init__(self, images: int = IMAGES) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.pixels = torch.rand(images, 1, SIDE, SIDE, generator=drawn)

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """Canvases for each array of image numbers."""
        for indices in batches:
            yield Canvases(self.pixels[indices], torch.ones(len(indices)))


def steps_of(settings: Mapping[str, Any], images: int = IMAGES) -> Steps:
    """The steps of a run on noise, in the middle of it.

    Args:
        settings: ``section.key`` options, over those that all ways have.
        images: how many there are.
    """
    overrides = {
        "preset": "dinov3", "train.steps": 100, "loss.centering": "sinkhorn", "health.every": 0,
    } | dict(settings)  # fmt: skip
    options = resolve(overrides, Facts(images)).options
    device = choose_device("auto")
    cutter = Cutter(options, [0.5] * 3, [0.25] * 3, device, dtype_of(options.train.precision))
    return Steps(options, Noise(images), images, cutter)


def exact(steps: Steps) -> None:
    """The product's way."""
    steps.gradients(STEP, values_at(STEP, steps.options))


def naive(steps: Steps, group: int | None = None) -> None:
    """As elsewhere: every micro-batch is a batch of its own, and gradients add up.

    Args:
        steps: of a run.
        group: images among which KoLeo looks for neighbours; None is the micro-batch.
    """
    steps.state.optimizer.zero_grad(set_to_none=True)
    size = steps.options.train.micro_batch
    assert isinstance(size, int)
    temperature = values_at(STEP, steps.options).teacher_temperature
    exact_step = steps.exact_step
    statistic = exact_step.statistic
    assert isinstance(statistic, KoLeo)
    step = replace(exact_step, statistic=replace(statistic, group=group or size))
    for batch in steps.batch(steps.plan(STEP)).each_alone():
        step.gradient(batch, steps.state.centering, temperature)


def seconds(work: Callable[[], None]) -> float:
    """Processor seconds, or seconds on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started
    started = time.process_time()
    work()
    return time.process_time() - started


def operations(work: Callable[[], None]) -> float:
    """Floating-point operations of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["vits16", "vitb16"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--drop-path", type=float, default=0.3)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    console = Console()
    console.print(f"{describe_device(choose_device('auto'))}, PyTorch {torch.__version__}")
    table = Table("model", "way", "s/step", "against naive", "GFLOP an image", "against naive",
                  box=None)  # fmt: skip
    for model in arguments.models:
        settings = {
            "model.name": model, "train.effective_batch": arguments.batch,
            "train.micro_batch": arguments.micro_batch, "train.precision": arguments.precision,
            "model.drop_path": arguments.drop_path,
        }  # fmt: skip
        whole = steps_of(settings | {"loss.koleo_group": "effective"})
        parts = steps_of(settings | {"loss.koleo_group": arguments.micro_batch})
        ways = {
            "naive": partial(naive, parts),
            "targets": partial(exact, parts),
            "all": partial(exact, whole),
        }
        counted = {name: operations(way) for name, way in ways.items()}  # warms up, too
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                times[name].append(seconds(way))
        for name in ways:
            ratios = [a / b for a, b in zip(times[name], times["naive"], strict=True)]
            table.add_row(
                model, name, f"{statistics.median(times[name]):.2f}",
                f"x {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                f"{counted[name] / arguments.batch / 1e9:.1f}",
                f"x {counted[name] / counted['naive']:.3f}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
