"""SK in tiles of prototypes: one sweep of products an iteration, and one exponential a logit.

A tile holds all rows of a few prototypes, so its f is final at once, and its share of the next g
comes from the same exponentials: with ``e = exp(l + g - m)``, ``m`` the largest of a prototype,

    f = -(m + log s),  s = sum over rows of e        exp(l + f) = exp(-g) e / s

so that ``sum over prototypes of exp(l + f)`` is a matrix-vector product with the tile. With relaxed
marginals (r > 0, see sinkhorn.py)

    f = -(1 - r) (m + log s)                         exp(l + f) = exp(-g) e w,  log w = m + f

and w may be of any size: sums are kept relative to the largest w, which is 1 / s <= 1 for r = 0.

Shape letters: N rows, D features, K prototypes of this process, C prototypes of a tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dino_x.losses import transfer
from dino_x.losses.memory import working_bytes
from dino_x.losses.ranks import Ranks

# Logits up to so many times the working memory are kept for all iterations: on a CPU 48 MiB. More
# would be faster still (512 x 65,536 kept: 0.38 s instead of 0.80 s) and let the peak of a training
# step grow with the effective batch, for less than a hundredth of its time.
KEEP_FACTOR = 2


def solve_bias(
    rows_ND: Tensor,
    prototypes_KD: Tensor,
    temperature: float,
    iterations: int,
    relaxation: float,
    ranks: Ranks,
    largest_share: int,
) -> Tensor:
    """f of this process's prototypes, given the rows of all processes, [K].

    ``largest_share`` is the most prototypes that any process has: all must choose the same path.
    """
    scaled_ND = rows_ND / temperature
    kept_bytes = len(rows_ND) * largest_share * rows_ND.element_size()
    if kept_bytes <= KEEP_FACTOR * working_bytes(rows_ND.device):
        kept_bias_K = _iterate_kept(scaled_ND, prototypes_KD, iterations, relaxation, ranks)
        if kept_bias_K is not None:
            return kept_bias_K
    return _iterate_sweeping(scaled_ND, prototypes_KD, iterations, relaxation, ranks)


def _iterate_sweeping(
    scaled_ND: Tensor, prototypes_KD: Tensor, iterations: int, relaxation: float, ranks: Ranks
) -> Tensor:
    """f from logits that are computed anew in each iteration, for any logits and number of rows."""
    row_bias_N = scaled_ND.new_zeros(len(scaled_ND))
    for _ in range(iterations - 1):
        bias_K, row_sums_N, scale = _sweep(scaled_ND, prototypes_KD, row_bias_N, relaxation)
        if relaxation:  # other processes have other scales
            largest = ranks.max_(scale.clone())
            row_sums_N *= (scale - largest).exp()
            scale = largest
        ranks.sum_(row_sums_N)
        row_bias_N = row_bias_N - (row_sums_N.log() + scale)
        # A row that is far from the largest of every prototype has lost digits, or all of them.
        lost_N = row_sums_N < torch.finfo(row_sums_N.dtype).tiny ** 0.5
        if transfer.read(lost_N.any()):
            lost = lost_N.nonzero()[:, 0]
            row_bias_N[lost] = -_row_logsumexp(scaled_ND[lost], prototypes_KD, bias_K, ranks)
    return _sweep(scaled_ND, prototypes_KD, row_bias_N, relaxation)[0]


def _sweep(
    scaled_ND: Tensor, prototypes_KD: Tensor, row_bias_N: Tensor, relaxation: float
) -> tuple[Tensor, Tensor, Tensor]:
    """f, [K], and this process's share of ``exp(g) * sum over prototypes of exp(l + f)``, [N].

    The sums are to be multiplied by exp of the number that comes third.
    """
    bias_K = scaled_ND.new_empty(len(prototypes_KD))
    row_sums_N = torch.zeros_like(row_bias_N)
    scale = scaled_ND.new_full((), -torch.inf if relaxation else 0.0)
    for tile, logits_CN in _tiles(scaled_ND, prototypes_KD, row_bias_N):
        largest_C = logits_CN.amax(dim=1)
        exp_CN = logits_CN.sub_(largest_C[:, None]).exp_()
        sums_C = exp_CN.sum(dim=1)
        bias_K[tile] = (relaxation - 1) * (largest_C + sums_C.log())
        if not relaxation:
            row_sums_N.addmv_(exp_CN.T, 1 / sums_C)
            continue
        log_weights_C = largest_C + bias_K[tile]
        before, scale = scale, torch.maximum(scale, log_weights_C.amax())
        row_sums_N *= (before - scale).exp()
        row_sums_N.addmv_(exp_CN.T, (log_weights_C - scale).exp())
    return bias_K, row_sums_N, scale


def _iterate_kept(
    scaled_ND: Tensor, prototypes_KD: Tensor, iterations: int, relaxation: float, ranks: Ranks
) -> Tensor | None:
    """f from exponentials that are kept: an iteration is two matrix-vector products.

    ``None`` if the logits differ so much that a sum may have lost digits; the sweeps then do it.
    """
    exp_KN = scaled_ND.new_empty(len(prototypes_KD), len(scaled_ND))
    largest_K = scaled_ND.new_empty(len(prototypes_KD))
    for tile, logits_CN in _tiles(scaled_ND, prototypes_KD, scaled_ND.new_zeros(()), exp_KN):
        largest_K[tile] = logits_CN.amax(dim=1)
        logits_CN.sub_(largest_K[tile, None]).exp_()
    # What underflows is below `tiny`. With sums above its 4th root, it is below their last digit
    # in all iterations, for fewer than a billion rows and prototypes.
    safe = torch.finfo(exp_KN.dtype).tiny ** 0.25
    factors_N = scaled_ND.new_ones(len(scaled_ND))  # exp(g + scale)
    scale = scaled_ND.new_zeros(())
    all_safe = []
    for _ in range(iterations - 1):
        sums_K = exp_KN @ factors_N
        weights_K = 1 / sums_K
        if relaxation:
            log_sums_K = largest_K + sums_K.log() - scale
            log_weights_K = largest_K - (1 - relaxation) * log_sums_K
            scale = ranks.max_(log_weights_K.logsumexp(dim=0))  # -inf without prototypes
            weights_K = (log_weights_K - scale).exp()
        row_sums_N = ranks.sum_(exp_KN.T @ weights_K)
        all_safe.append((row_sums_N > safe).all())
        factors_N = 1 / row_sums_N
    if all_safe and not transfer.read(torch.stack(all_safe).all()):
        return None
    return (relaxation - 1) * (largest_K + (exp_KN @ factors_N).log() - scale)


def _row_logsumexp(
    scaled_BD: Tensor, prototypes_KD: Tensor, bias_K: Tensor, ranks: Ranks
) -> Tensor:
    """``logsumexp over all prototypes of (l + f)`` of a few rows, safe for any logits, [B]."""
    largest_B = scaled_BD.new_full((len(scaled_BD),), -torch.inf)
    sums_B = torch.zeros_like(largest_B)
    for tile, logits_CB in _tiles(scaled_BD, prototypes_KD, scaled_BD.new_zeros(())):
        logits_CB += bias_K[tile, None]
        before_B = largest_B
        largest_B = torch.maximum(before_B, logits_CB.amax(dim=0))
        sums_B *= (before_B - largest_B).exp()
        sums_B += logits_CB.sub_(largest_B).exp_().sum(dim=0)
    overall_B = ranks.max_(largest_B.clone())
    sums_B *= (largest_B - overall_B).exp()
    return overall_B + ranks.sum_(sums_B).log()


def _tiles(
    scaled_ND: Tensor, prototypes_KD: Tensor, added_N: Tensor, out_KN: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Logits plus ``added_N`` tile by tile, [C, N]: each in its place of ``out_KN``, if given.

    Without it they share one buffer, so that a tile is lost when the next one comes.
    """
    rows, prototypes = len(scaled_ND), len(prototypes_KD)
    row_bytes = rows * scaled_ND.element_size()
    size = max(1, min(prototypes, working_bytes(scaled_ND.device) // row_bytes))
    space = scaled_ND.new_empty(size, rows) if out_KN is None else out_KN
    for start in range(0, prototypes, size):
        tile = slice(start, min(start + size, prototypes))
        place = slice(0, tile.stop - start) if out_KN is None else tile
        prototypes_CD = prototypes_KD[tile].to(scaled_ND.dtype)
        yield tile, torch.addmm(added_N, prototypes_CD, scaled_ND.T, out=space[place])
