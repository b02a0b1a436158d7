"""A queue of past teacher outputs, which gives Sinkhorn-Knopp the statistics of a larger batch.

SwAV's (Caron et al. 2020, section 4.2), for both heads: rows count for the bias f, and are never
targets themselves. Shape letters: Q rows of a queue, R of a step, D bottleneck.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Queues:
    """The latest bottlenecks of each head, oldest first. Replaced once a step."""

    length: int
    dino_QD: Tensor
    ibot_QD: Tensor

    @classmethod
    def empty(cls, length: int, like_D: Tensor) -> "Queues":
        """Without rows; ``like_D`` has the width, type and device of a bottleneck."""
        none = like_D.new_empty(0, len(like_D))
        return cls(length, none, none.clone())

    def next(self, dino_RD: Tensor, ibot_RD: Tensor) -> "Queues":
        """After a step with these bottlenecks, in an order that no micro-batch changes."""
        return Queues(
            self.length,
            latest(self.dino_QD, dino_RD, self.length),
            latest(self.ibot_QD, ibot_RD, self.length),
        )


def latest(queue_QD: Tensor, step_RD: Tensor, length: int) -> Tensor:
    """The last ``length`` rows; of a step that has more, as many evenly spaced over it."""
    if len(step_RD) > length:
        chosen = torch.arange(length, device=step_RD.device) * len(step_RD) // max(length, 1)
        return step_RD[chosen]
    kept = queue_QD[max(0, len(queue_QD) + len(step_RD) - length) :]
    return torch.cat([kept, step_RD.to(queue_QD.dtype)])
