"""What a small effective batch means for centering and KoLeo. The one place that decides it."""

from dataclasses import dataclass
from typing import Literal

from dino_x.config.options import LossOptions
from dino_x.errors import UserError

ROWS_PER_IMAGE = 2  # teacher outputs an image leaves in the queue: one for each global view


@dataclass(frozen=True)
class Policy:
    """The decision, and the line that says it.

    Attributes:
        centering: of the targets.
        koleo_weight: of the KoLeo term.
        queue: teacher outputs of earlier steps in Sinkhorn-Knopp, for each head.
        message: the line.
        warning: whether it is a warning.
    """

    centering: Literal["sinkhorn", "softmax"]
    koleo_weight: float
    queue: int
    message: str
    warning: bool = False


def centering_policy(loss: LossOptions, effective_batch: int) -> Policy:
    """Choose the centering for an effective batch.

    ``auto`` is Sinkhorn-Knopp if the effective batch and the images in the queue together reach
    ``loss.floor``. Below, the targets of so few rows blur toward uniform. Then a queue of earlier
    outputs brings the rows to the floor, or ``loss.on_small_batch`` says what happens. Which is
    better was measured: docs/batch-size.md.

    Raises: UserError below the floor, if ``loss.on_small_batch`` is ``error``.
    """
    koleo_weight = loss.koleo_weight if effective_batch > 1 else 0.0  # it needs a neighbour
    if loss.centering == "softmax":
        message = "softmax centering with a running mean, as chosen"
        return Policy("softmax", loss.koleo_weight, loss.queue, message)
    scope = scope_of(loss, effective_batch, loss.queue)
    if effective_batch + loss.queue // ROWS_PER_IMAGE >= loss.floor:
        return Policy("sinkhorn", loss.koleo_weight, loss.queue, scope)
    if loss.centering == "sinkhorn" or loss.on_small_batch == "warn":
        message = f"{scope}: below the floor of {loss.floor}, targets blur toward uniform"
        return Policy("sinkhorn", loss.koleo_weight, loss.queue, message, warning=True)
    needed = queue_for_floor(loss, effective_batch)
    small = f"an effective batch of {effective_batch} is below the floor of {loss.floor}"
    if loss.on_small_batch == "error":
        raise UserError(
            f"{small} for Sinkhorn-Knopp; raise --effective-batch (memory does not grow) or add a"
            f" queue (--queue {needed})"
        )
    if loss.on_small_batch == "queue":
        message = (
            f"{scope_of(loss, effective_batch, needed)}: {small}, and the queue brings the rows to"
            " it; --centering softmax takes DINOv1's centering instead"
        )
        return Policy("sinkhorn", koleo_weight, needed, message)
    message = (
        f"softmax centering (DINOv1): {small} for Sinkhorn-Knopp; a queue (--queue {needed}) or a"
        " larger --effective-batch (memory does not grow) was better where it was measured"
    )
    return Policy("softmax", koleo_weight, loss.queue, message)


def scope_of(loss: LossOptions, effective_batch: int, queue: int) -> str:
    """What Sinkhorn-Knopp looks at, in words."""
    scope = f"Sinkhorn-Knopp over all {effective_batch} images of the effective batch"
    if queue:
        scope += f" and {queue:,} teacher outputs of earlier steps"
    if loss.sinkhorn_relaxation:
        scope += f", equal use of prototypes relaxed by {loss.sinkhorn_relaxation:g}"
    return scope


def queue_for_floor(loss: LossOptions, effective_batch: int) -> int:
    """The shortest queue with which the rows reach the floor; a longer one of the user's stays."""
    return max(loss.queue, ROWS_PER_IMAGE * (loss.floor - effective_batch))
