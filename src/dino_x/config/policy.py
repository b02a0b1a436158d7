"""What a small effective batch means for centering and KoLeo. The one place that decides it."""

from dataclasses import dataclass
from typing import Literal

from dino_x.config.options import LossOptions
from dino_x.errors import UserError

ROWS_PER_IMAGE = 2  # teacher outputs an image leaves in the queue: one for each global view


@dataclass(frozen=True)
class Policy:
    """The decision, and the line that says it."""

    centering: Literal["sinkhorn", "softmax"]
    koleo_weight: float
    message: str
    warning: bool = False


def centering_policy(loss: LossOptions, effective_batch: int) -> Policy:
    """Choose the centering for an effective batch.

    ``auto`` is Sinkhorn-Knopp if the effective batch and the images in the queue together reach
    ``loss.floor``. Below, its targets blur toward uniform, so it is softmax centering (DINOv1) with
    KoLeo off, or what ``loss.on_small_batch`` says.

    Raises: UserError below the floor, if ``loss.on_small_batch`` is ``error``.
    """
    if loss.centering == "softmax":
        message = "softmax centering with a running mean, as chosen"
        return Policy("softmax", loss.koleo_weight, message)
    scope = f"Sinkhorn-Knopp over all {effective_batch} images of the effective batch"
    if loss.queue:
        scope += f" and {loss.queue:,} teacher outputs of earlier steps"
    if loss.sinkhorn_relaxation:
        scope += f", equal use of prototypes relaxed by {loss.sinkhorn_relaxation:g}"
    if effective_batch + loss.queue // ROWS_PER_IMAGE >= loss.floor:
        return Policy("sinkhorn", loss.koleo_weight, scope)
    if loss.centering == "sinkhorn" or loss.on_small_batch == "warn":
        message = f"{scope}: below the floor of {loss.floor}, targets blur toward uniform"
        return Policy("sinkhorn", loss.koleo_weight, message, warning=True)
    small = (
        f"an effective batch of {effective_batch} is below the floor of {loss.floor} for"
        " Sinkhorn-Knopp; raise --effective-batch (memory does not grow) or add a queue"
        f" (--queue {queue_for_floor(loss, effective_batch)})"
    )
    if loss.on_small_batch == "error":
        raise UserError(small)
    return Policy("softmax", 0.0, f"softmax centering, KoLeo off: {small}")


def queue_for_floor(loss: LossOptions, effective_batch: int) -> int:
    """The shortest queue, in a power of 2, with which ``auto`` is Sinkhorn-Knopp."""
    missing = ROWS_PER_IMAGE * (loss.floor - effective_batch)
    return 1 << (missing - 1).bit_length()
