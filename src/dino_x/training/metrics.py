"""What is recorded of a step, in metrics.jsonl and on the screen."""

import math
from typing import Any

import torch

from dino_x.config.options import Options
from dino_x.machine.device import peak_memory_gib
from dino_x.training.schedules import StepValues
from dino_x.views.sizes import GLOBAL_VIEWS


def step_metrics(
    terms: dict[str, float],
    values: StepValues,
    options: Options,
    *,
    done: int,
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """The line of a step. Each image of the effective batch is counted once.

    Args:
        terms: what the step found, by name.
        values: what was scheduled for the step.
        options: of the run.
        done: optimizer steps that are done, with this one.
        seconds: that the step took.
        device: whose memory is looked at.
    """
    batch = options.train.effective_batch
    metrics: dict[str, Any] = {
        "step": done,
        "images": done * batch,
        **terms,
        "lr": values.lr,
        "weight_decay": values.weight_decay,
        "teacher_momentum": values.momentum,
        "teacher_temperature": values.teacher_temperature,
    }
    if options.loss.queue:  # how many steps ago the oldest row of the CLS queue was made
        metrics["queue_age"] = math.ceil(options.loss.queue / (GLOBAL_VIEWS * batch))
    if "gram" in terms:
        metrics["gram_weight"] = values.gram_weight
        metrics["local_weight"] = values.local_weight
    return metrics | {
        "images_per_second": batch / seconds,
        "memory_gib": peak_memory_gib(device),
    }
