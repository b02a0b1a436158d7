"""Images a second: measured on this machine, or estimated for a GPU."""

from dataclasses import dataclass

import torch

from dino_x.cost import memory
from dino_x.cost.gpus import ASSUMED, Gpu
from dino_x.cost.shapes import Step
from dino_x.planning.measure import Trial


@dataclass(frozen=True)
class Speed:
    """Images a second, and how that number is known."""

    images_per_second: float
    how: str
    measured: bool


def speed(
    step: Step, gpu: Gpu | None, mfu: float | None, trial: Trial | None, flop: float
) -> Speed | None:
    """Images a second: measured, or estimated for a GPU, or not known."""
    if gpu is not None:
        return estimated_speed(step, gpu, mfu, flop)
    if trial is not None:
        return measured_speed(step, trial)
    return None


def estimated_speed(step: Step, gpu: Gpu, mfu: float | None, flop: float) -> Speed:
    """Images a second by calculation: a share of a GPU's peak, by the FLOP of an image."""
    precision = step.options.train.precision
    tf32 = torch.get_float32_matmul_precision() != "highest"
    peak = gpu.peak(precision, tf32=tf32)
    assert peak is not None
    source = "as you say" if mfu else "assumed; --mfu"
    share = mfu or ASSUMED[precision]
    how = f"estimate: {share:.0%} of {peak:g} TFLOP/s ({source})"
    return Speed(step.processes * share * peak * 1e12 / flop, how, measured=False)


def measured_speed(step: Step, trial: Trial) -> Speed:
    """Images a second as measured: of the network, or of reading where that is slower."""
    rate = step.processes / trial.seconds
    how = f"measured here, {trial.images} image{'s' * (trial.images > 1)} at a time"
    if step.processes > 1:
        how += f", times {step.processes}"
    if trial.reading is None:
        return Speed(rate, how, measured=True)
    in_memory = memory.cached_images(step) < step.options.data.cache_mb * 2.0**20
    cached = in_memory or step.options.data.cache is not None
    reading_rate = trial.reading * step.processes
    if reading_rate < rate and not cached:
        rate = reading_rate
        how = f"as fast as images are read; {1 / trial.seconds:.1f} without (--cache DIR)"
    return Speed(rate, how, measured=True)
