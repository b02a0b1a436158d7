"""What a small effective batch means for centering and KoLeo. The one place that decides it."""

from dataclasses import dataclass
from typing import Literal

from dino_x.config import LossOptions


@dataclass(frozen=True)
class Policy:
    """The decision, and the line that says it."""

    centering: Literal["sinkhorn", "softmax"]
    koleo_weight: float
    message: str
    warning: bool = False


def centering_policy(loss: LossOptions, effective_batch: int) -> Policy:
    """Choose the centering for an effective batch.

    ``auto`` is Sinkhorn-Knopp over the effective batch from ``loss.floor`` images up. Below, its
    targets blur toward uniform, so it is softmax centering (DINOv1) with KoLeo off.
    """
    floor = loss.floor
    small = effective_batch < floor
    if loss.centering == "auto" and small:
        return Policy(
            "softmax",
            0.0,
            f"softmax centering, KoLeo off: an effective batch of {effective_batch} is below the"
            f" floor of {floor} for Sinkhorn-Knopp; raise --effective-batch (memory does not grow)"
            " or choose --centering sinkhorn",
        )
    if loss.centering in ("auto", "sinkhorn"):
        scope = f"Sinkhorn-Knopp over all {effective_batch} images of the effective batch"
        if small:
            warning = f"{scope}: below the floor of {floor}, targets blur toward uniform"
            return Policy("sinkhorn", loss.koleo_weight, warning, warning=True)
        return Policy("sinkhorn", loss.koleo_weight, scope)
    return Policy("softmax", loss.koleo_weight, "softmax centering with a running mean, as chosen")
