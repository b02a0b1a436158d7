"""What a long run means to whoever waits for it: what ten minutes give, what a GPU would take."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from dino_x.config.resolve import Facts, resolve, with_values
from dino_x.cost import flops
from dino_x.cost.gpus import GPUS, Gpu
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.model.backbone import build_backbone
from dino_x.model.teacher import build_student
from dino_x.planning.need import for_gpu
from dino_x.planning.speed import estimated_speed
from dino_x.progress import roughly
from dino_x.training.micro_batch import most_on_cpu

PATIENCE = 600.0  # seconds: a first run should be over by then
USUAL_GPU = "rtx3090"
# A small network reaches fewer operations a second than a large one: 68 GFLOP/s beside 125, the
# preset try (174 images/s) beside a ViT-S of 224 px (docs/speed.md) on two cores of an AMD EPYC.
SMALL_IS_SLOWER = 1.85


@dataclass(frozen=True)
class Outlook:
    """How long a run takes on this machine, and what else one could do.

    Attributes:
        seconds: of the whole run.
        steps: it has.
        small_seconds: of a run with the preset try; None if this run is one, or is no longer.
        gpu: a common GPU.
        gpu_seconds: an estimate for it; None where the run fits no micro-batch into its memory.
        precision: that the estimate is for.
    """

    seconds: float
    steps: int
    small_seconds: float | None
    gpu: Gpu
    gpu_seconds: float | None
    precision: str

    @property
    def is_long(self) -> bool:
        """Whether the run takes longer than one likes to wait for a first one."""
        return self.seconds > PATIENCE

    def as_json(self) -> dict[str, Any]:
        """Its figures for other programs, in seconds."""
        return {
            "small_run_seconds": self.small_seconds,
            "gpu": self.gpu.name,
            "gpu_seconds": self.gpu_seconds,
        }

    def lines(self) -> dict[str, str]:
        """Lines by name; none for a short run."""
        if not self.is_long:
            return {}
        done = int(self.steps * PATIENCE / self.seconds)
        found = {"at first": f"in 10 minutes {done:,} of {self.steps:,} steps are done"}
        if self.small_seconds is not None:
            found["quicker"] = (
                f"--preset try: a very small network, about {roughly(self.small_seconds)}"
            )
        found["on a GPU"] = f"it does not fit on an {self.gpu.name}; see plan --card"
        if self.gpu_seconds is not None:
            found["on a GPU"] = (
                f"by estimate {roughly(self.gpu_seconds)} on an {self.gpu.name} in {self.precision}"
            )
        return found


def outlook(step: Step, images_per_second: float, steps: int) -> Outlook:
    """What a run on this machine means.

    Args:
        step: of the run, as numbers.
        images_per_second: measured.
        steps: of the run.
    """
    seconds = steps * step.effective_batch / images_per_second
    numerics = Numerics.on(step.options.train.precision, torch.device("cpu"))
    rate = images_per_second * sum(flops.by_part(step, numerics.working).values())  # FLOP/s
    small = seconds_of_small(rate)
    gpu, precision = GPUS[USUAL_GPU], "bf16"
    return Outlook(
        seconds,
        steps,
        small if small < seconds / 2 else None,
        gpu,
        seconds_on(gpu, step, precision, steps),
        precision,
    )


def seconds_of_small(rate: float) -> float:
    """The seconds of a run with the preset try, where a larger network has so many FLOP/s."""
    options = resolve({"preset": "try"}, Facts(1)).options
    with torch.device("meta"):
        backbone = build_backbone(options.model, options.views.global_size, options.train.seed)
        student = build_student(options, backbone)
    side = options.views.global_size
    step = Step.of(options, student, processes=1, canvas=side, channels=1, images=1)
    step = step.at(min(most_on_cpu(step), step.effective_batch))
    numerics = Numerics.on("fp32", torch.device("cpu"))
    assert options.train.steps is not None
    images = options.train.steps * options.train.effective_batch
    work = images * sum(flops.by_part(step, numerics.working).values())
    return SMALL_IS_SLOWER * work / rate


def seconds_on(gpu: Gpu, step: Step, precision: str, steps: int) -> float | None:
    """An estimate of the seconds of a run on one GPU; None if it does not fit."""
    other = {"train.precision": precision, "train.micro_batch": "auto"}
    there = replace(step, options=with_values(step.options, other), processes=1)
    there, need = for_gpu(there, gpu)
    if need.fits is None:
        return None
    work = sum(flops.by_part(there, need.numerics.working).values())
    return steps * step.effective_batch / estimated_speed(there, gpu, None, work).images_per_second
