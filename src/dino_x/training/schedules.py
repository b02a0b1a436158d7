"""Schedules, as pure functions of the optimizer step. Steps count from 0."""

import math
from dataclasses import dataclass

from dino_x.config.options import GramOptions, LossOptions, Options


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From start at step 0 to end at the last step, ``steps - 1``."""
    progress = min(step / max(steps - 1, 1), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(peak: float, end: float, step: int, steps: int, warmup: int) -> float:
    """Linear from peak / warmup up to peak in ``warmup`` steps, then a cosine to end."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, end, step - warmup, steps - warmup)


def warmup_linear(start: float, end: float, step: int, warmup: int) -> float:
    """Linear from start to end in ``warmup`` steps, then end."""
    return end if step >= warmup else start + (end - start) * step / warmup


@dataclass(frozen=True)
class StepValues:
    """What is scheduled, at one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    last_layer_frozen: bool
    backbone_frozen: bool = False
    gram_weight: float = 0.0
    local_weight: float = 1.0


def peak_lr(options: Options) -> float:
    """``optim.lr * sqrt(effective batch / lr_batch)``, DINOv2/v3's rule."""
    return options.optim.lr * lr_scale(options)


def end_lr(options: Options) -> float:
    """The learning rate of the last step, by the same rule; the peak if ``lr_end`` is None."""
    if options.optim.lr_end is None:
        return peak_lr(options)
    return options.optim.lr_end * lr_scale(options)


def lr_scale(options: Options) -> float:
    """What learning rates are multiplied by for the effective batch."""
    return math.sqrt(options.train.effective_batch / options.optim.lr_batch)


def values_at(step: int, options: Options) -> StepValues:
    """All scheduled values at an optimizer step of a run with resolved options."""
    steps, optim, teacher = options.train.steps, options.optim, options.teacher
    assert steps is not None
    assert optim.warmup is not None
    assert optim.freeze_last_layer is not None
    assert teacher.temperature_warmup is not None
    return StepValues(
        lr=warmup_cosine(peak_lr(options), end_lr(options), step, steps, optim.warmup),
        weight_decay=cosine(optim.weight_decay, optim.weight_decay_end, step, steps),
        momentum=cosine(first_momentum(options), teacher.momentum_end, step, steps),
        teacher_temperature=warmup_linear(
            teacher.temperature_start, teacher.temperature, step, teacher.temperature_warmup
        ),
        last_layer_frozen=step < optim.freeze_last_layer,
        backbone_frozen=step < (optim.freeze_backbone or 0),
        gram_weight=gram_weight(step, options.gram),
        local_weight=local_weight(step, options.loss, options.gram),
    )


def first_momentum(options: Options) -> float:
    """The EMA momentum at the start, for the effective batch.

    Source: Busbridge et al. 2023, "How to scale your EMA": with a batch k times as large, one step
    stands for k, so the momentum is raised to the power of k.
    """
    teacher = options.teacher
    if teacher.momentum_batch is None:
        return teacher.momentum
    scaled: float = teacher.momentum ** (options.train.effective_batch / teacher.momentum_batch)
    return scaled


def gram_weight(step: int, gram: GramOptions) -> float:
    """0 before ``gram.start``, then from ``weight_start`` to ``weight`` in ``warmup`` steps."""
    if step < gram.start:
        return 0.0
    return warmup_linear(gram.weight_start, gram.weight, step - gram.start, gram.warmup)


def local_weight(step: int, loss: LossOptions, gram: GramOptions) -> float:
    """``loss.local_weight``; with Gram anchoring, from ``gram.start``, ``local_weight_gram``.

    It changes on a line in ``gram.warmup`` steps, as the weight of the Gram term does.
    """
    if not gram.weight or step < gram.start:
        return loss.local_weight
    return warmup_linear(loss.local_weight, loss.local_weight_gram, step - gram.start, gram.warmup)
