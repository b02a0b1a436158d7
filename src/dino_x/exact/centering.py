"""Centering of the teacher's outputs over the whole effective batch, with its state as an argument.

Sinkhorn-Knopp and softmax centering both end in ``softmax(logits / temperature + f)``: what they
make is the bias f, one number a prototype. A queue of past outputs gives Sinkhorn-Knopp the
statistics of a larger batch (SwAV: Caron et al. 2020, section 4.2); its rows count for the bias and
are never targets themselves.

K: prototypes, D: bottleneck, R: rows of a step, Q: rows of a queue.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_x.losses.centering import center_bias, next_center
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.losses.sinkhorn import sinkhorn_bias


@dataclass(frozen=True)
class HeadState:
    """What centering remembers of one head. Replaced once a step, never changed.

    Attributes:
        center_K: running mean of the teacher's logits, for softmax centering.
        queue_QD: the latest bottlenecks, oldest first.
        length: of the queue when it is full; 0 keeps none.
    """

    center_K: Tensor
    queue_QD: Tensor
    length: int = 0

    @classmethod
    def first(cls, prototypes: int, bottleneck_D: Tensor, queue: int = 0) -> "HeadState":
        """The state before the first step: a center of zeros and an empty queue.

        Args:
            prototypes: K.
            bottleneck_D: anything with the width, type and device of a bottleneck.
            queue: rows of the queue when it is full.
        """
        zeros = bottleneck_D.new_zeros(prototypes)
        return cls(zeros, zeros.new_empty(0, len(bottleneck_D)), queue)

    def after(self, rows_RD: Tensor, center_K: Tensor) -> "HeadState":
        """The state after a step with these bottlenecks, which are in the order of the batch."""
        return HeadState(center_K, latest(self.queue_QD, rows_RD, self.length), self.length)


@dataclass(frozen=True)
class CenteringState:
    """What centering remembers of both heads."""

    dino: HeadState
    ibot: HeadState


# (rows_RD of all processes, prototypes_KD, temperature, state, processes) -> bias_K, next state
Centering = Callable[[Tensor, Tensor, float, HeadState, Ranks], tuple[Tensor, HeadState]]


@dataclass(frozen=True)
class Sinkhorn:
    """Sinkhorn-Knopp over all rows of the step and the queue; see ``losses.sinkhorn_bias``."""

    iterations: int = 3
    relaxation: float = 0.0
    implementation: str = "streaming"

    def __call__(
        self,
        rows_RD: Tensor,
        prototypes_KD: Tensor,
        temperature: float,
        state: HeadState,
        ranks: Ranks = ALONE,
    ) -> tuple[Tensor, HeadState]:
        """The bias f [K] of this step's targets, and the state after the step."""
        # Every process has all rows. Each brings a share, so that products are shared as well.
        share = ranks.share(len(rows_RD))
        queued = ranks.share(len(state.queue_QD))
        bias_K = sinkhorn_bias(
            rows_RD[share],
            prototypes_KD,
            temperature,
            self.iterations,
            relaxation=self.relaxation,
            extra_bottlenecks_QD=state.queue_QD[queued] if len(state.queue_QD) else None,
            group=ranks.group,
            implementation=self.implementation,
        )
        return bias_K, state.after(rows_RD, state.center_K)


@dataclass(frozen=True)
class Softmax:
    """Softmax centering (DINO: Caron et al. 2021, eq. 4) with a center of the effective batch."""

    momentum: float = 0.9

    def __call__(
        self,
        rows_RD: Tensor,
        prototypes_KD: Tensor,
        temperature: float,
        state: HeadState,
        ranks: Ranks = ALONE,
    ) -> tuple[Tensor, HeadState]:
        """The bias f [K] of this step's targets, and the state after the step."""
        mean_D = rows_RD.mean(dim=0)
        center_K = next_center(state.center_K, mean_D, prototypes_KD, self.momentum)
        return center_bias(state.center_K, temperature), state.after(rows_RD, center_K)


def latest(queue_QD: Tensor, step_RD: Tensor, length: int) -> Tensor:
    """The last ``length`` rows; of a step that has more, as many evenly spaced over it."""
    if len(step_RD) > length:
        chosen = torch.arange(length, device=step_RD.device) * len(step_RD) // max(length, 1)
        return step_RD[chosen]
    kept = queue_QD[max(0, len(queue_QD) + len(step_RD) - length) :]
    return torch.cat([kept, step_RD.to(queue_QD.dtype)])
