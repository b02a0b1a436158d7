"""SIGReg: features are pulled towards a standard normal distribution, seen along random directions.

In each direction the mean of cos and sin of the batch's projections, its characteristic function,
is compared with that of a standard normal at a few knots (the statistic of Epps and Pulley 1983).
Source: Balestriero and LeCun 2025, "LeJEPA" (arXiv 2511.08544), section 4.

N rows, F features, M directions, T knots, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from dino_x.losses.checks import check_at_least, check_finite, check_matrix, compute_dtype
from dino_x.losses.memory import working_bytes
from dino_x.losses.transfer import there

LIMIT = 5.0  # knots lie between -5 and 5
COPIES = 4  # numbers that are held for each row, direction and knot of a chunk


def random_directions(features: int, directions: int, seed: int) -> Tensor:
    """Unit vectors in all directions alike, [F, M] float64 on the CPU.

    Args:
        features: F, 1 or more.
        directions: M, 1 or more.
        seed: what they are drawn from; the same seed gives the same directions anywhere.

    Raises: ValueError for a count below 1.

    >>> [round(float(norm), 6) for norm in random_directions(5, 2, seed=3).norm(dim=0)]
    [1.0, 1.0]
    """
    check_at_least("features", features, 1)
    check_at_least("directions", directions, 1)
    generator = torch.Generator().manual_seed(seed)
    drawn_FM = torch.randn(features, directions, generator=generator, dtype=torch.float64)
    return drawn_FM / drawn_FM.norm(dim=0)


def sigreg(features_ND: Tensor, directions_DM: Tensor, knots: int = 17) -> Tensor:
    """How far the rows are from a standard normal distribution, as a mean over directions.

    For each direction, with c(t) and s(t) the means of cos(t x) and sin(t x) over the N rows'
    projections x, it is

        N * integral over t of exp(-t^2 / 2) * ((c(t) - exp(-t^2 / 2))^2 + s(t)^2)

    by the trapezoid rule at knots between -5 and 5. It is about 1 for rows of a standard normal
    distribution, whatever N is, and grows with N for others. It looks at all rows, so the mean of
    its values over parts of a batch is another number.

    Args:
        features_ND: rows, [N, D], as they are: they are not normalised. Of any floating type.
        directions_DM: unit vectors, [D, M]; see ``random_directions``.
        knots: T, 2 or more.

    Returns: a scalar, float32, or float64 if the features are. Gradients flow to the features,
        once. Memory beside the rows does not grow with N.

    Raises: ValueError for matrices of wrong shape, values that are not finite, and too few knots.

    >>> rows = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    >>> directions = random_directions(8, 16, seed=1)
    >>> bool(sigreg(rows, directions) < 3), bool(sigreg(2 * rows, directions) > 30)
    (True, True)
    """
    check_matrix("features_ND", features_ND, rows="feature")
    check_matrix("directions_DM", directions_DM, rows="feature")
    if len(directions_DM) != features_ND.shape[1]:
        raise ValueError(
            f"directions_DM has {len(directions_DM)} rows; expected {features_ND.shape[1]}, one"
            " for each column of features_ND"
        )
    check_at_least("knots", knots, 2)
    check_finite("features_ND", features_ND)
    with torch.autocast(features_ND.device.type, enabled=False):
        rows_ND = features_ND.to(compute_dtype(features_ND))
        loss: Tensor = EppsPulley.apply(
            rows_ND, there(directions_DM, rows_ND.device, rows_ND.dtype), knots
        )
    return loss


def knots_and_weights(knots: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Knots above 0 and their weights in the integral, [T'] each.

    What is integrated is even and 0 at 0, so each weight counts for both signs.
    """
    points_T = torch.linspace(-LIMIT, LIMIT, knots, dtype=torch.float64)
    weights_T = torch.full_like(points_T, 2 * LIMIT / (knots - 1))
    weights_T[[0, -1]] /= 2
    weights_T *= torch.exp(-points_T.square() / 2)
    above = slice((knots + 1) // 2, None)
    points_T, weights_T = points_T[above], 2 * weights_T[above]
    return there(points_T, like.device, like.dtype), there(weights_T, like.device, like.dtype)


class EppsPulley(torch.autograd.Function):
    """The statistic with its gradient, a few rows at a time: no [N, M, T] is ever held."""

    @staticmethod
    def forward(ctx: Any, rows_ND: Tensor, directions_DM: Tensor, knots: int) -> Tensor:
        """The mean over directions."""
        points_T, weights_T = knots_and_weights(knots, rows_ND)
        count, directions = len(rows_ND), directions_DM.shape[1]
        of_a_row = COPIES * directions * len(points_T) * rows_ND.element_size()
        chunks = rows_ND.split(max(1, working_bytes(rows_ND.device) // max(of_a_row, 1)))
        cos_MT = rows_ND.new_zeros(directions, len(points_T))
        sin_MT = torch.zeros_like(cos_MT)
        for chunk_CD in chunks:
            angles_CMT = (chunk_CD @ directions_DM)[:, :, None] * points_T
            cos_MT += angles_CMT.cos().sum(dim=0) / count
            sin_MT += angles_CMT.sin().sum(dim=0) / count
        off_MT = cos_MT - torch.exp(-points_T.square() / 2)
        if ctx.needs_input_grad[0]:
            factor_T = 2 * weights_T * points_T / directions
            gradients = [
                slope(chunk_CD @ directions_DM, points_T, off_MT * factor_T, sin_MT * factor_T)
                @ directions_DM.T
                for chunk_CD in chunks
            ]
            ctx.save_for_backward(torch.cat(gradients))
        value: Tensor = ((off_MT.square() + sin_MT.square()) @ weights_T).mean() * count
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the rows."""
        (gradient_ND,) = ctx.saved_tensors
        return gradients[0] * gradient_ND, None, None


def slope(
    projections_CM: Tensor, points_T: Tensor, cos_factor_MT: Tensor, sin_factor_MT: Tensor
) -> Tensor:
    """The gradient with respect to each projection, [C, M]."""
    angles_CMT = projections_CM[:, :, None] * points_T
    down_CMT = angles_CMT.sin().mul_(cos_factor_MT)
    return angles_CMT.cos_().mul_(sin_factor_MT).sub_(down_CMT).sum(dim=2)
