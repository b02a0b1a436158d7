"""Sinkhorn-Knopp (SK) centering of the teacher as one bias per prototype.

Shape letters: N rows of the batch, Q queued rows, D features, K prototypes, C prototypes of a
tile.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from dino_x.losses.checks import (
    check_at_least,
    check_choice,
    check_finite,
    check_matrix,
    check_positive,
    check_same_width,
    check_share,
    compute_dtype,
)
from dino_x.losses.ranks import Ranks
from dino_x.losses.sinkhorn_sweeps import solve_bias


@torch.compiler.disable
@torch.no_grad()
def sinkhorn_bias(
    bottlenecks_ND: Tensor,
    prototypes_KD: Tensor,
    temperature: float,
    iterations: int = 3,
    *,
    relaxation: float = 0.0,
    extra_bottlenecks_QD: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    implementation: str = "streaming",
) -> Tensor:
    """Per-prototype bias f such that softmax(logits / temperature + f) is the SK target.

    With ``l = <bottleneck, prototype> / temperature`` and ``g = 0``, each iteration sets

        f[k] = -logsumexp over rows of (l + g)        g[n] = -logsumexp over prototypes of (l + f)

    which are SK's two normalisations in the log domain: nothing overflows, whatever the logits.
    No gradient flows.

    ``relaxation`` r weakens the demand that all prototypes are used equally: f[k] is multiplied by
    1 - r in each iteration. That is unbalanced optimal transport with the prototypes' marginal held
    by a Kullback-Leibler penalty of weight rho instead of exactly, 1 - r = rho / (rho + 1) in units
    of the temperature. Equal use is a wrong prior where classes are of unequal size.

    Args:
        bottlenecks_ND: teacher outputs of the whole effective batch, usually L2-normalised, [N, D].
        prototypes_KD: weight of the teacher's last layer, [K, D]; the same in every process.
        temperature: of the teacher, above 0; 0.04 to 0.07 in DINO.
        iterations: 1 or more; 3 in DINOv2 and DINOv3.
        relaxation: r, 0 (SK) to 1 (no centering: f is 0, the targets are plain softmax).
        extra_bottlenecks_QD: a queue of past teacher outputs, [Q, D]: rows that count for the
            statistics as those of the batch do. Each process brings its own.
        group: a process group over whose rows f is exact. Rows are gathered and prototypes divided,
            so that each process does its share of the products. A process may have no rows, if
            another has some. ``None`` is this process alone.
        implementation: "streaming" never holds more than a tile of the logits, "reference" holds
            all of them. They agree to rounding.

    Returns: f, [K], float32, or float64 if an argument is. Adding a constant to f changes nothing.

    Raises:
        ValueError: naming the argument, its value and what was expected, before any work; in every
            process of the group if one of them refuses.

    Memory beyond the inputs, "streaming": a tile of 24 MiB (CUDA: 1 / 64 of the device), and
        O(N + K). Logits that take at most 48 MiB (CUDA: a 32nd of the device) are computed once
        and kept. Both sizes are fixed, so that the same inputs give the same bits whatever else is
        in memory.

    Source: Cuturi 2013, algorithm 1; Caron et al. 2020, section 3.1, for the queue too; Oquab et
        al. 2023, section 4; Chizat et al. 2018, table 1 and algorithm 1, for the relaxation.

    >>> rows, prototypes = torch.eye(3), torch.eye(3)
    >>> sinkhorn_bias(rows, prototypes, temperature=1.0)  # balanced already: the same for all
    tensor([-1.5514, -1.5514, -1.5514])
    """
    ranks = Ranks(group)
    refusal: ValueError | None = None
    try:
        check_choice("implementation", implementation, ("streaming", "reference"))
        check_positive("temperature", temperature)
        check_at_least("iterations", iterations, 1)
        check_share("relaxation", relaxation)
        check_matrix("prototypes_KD", prototypes_KD, rows="prototype")
        for name, rows_ND in (
            ("bottlenecks_ND", bottlenecks_ND),
            ("extra_bottlenecks_QD", extra_bottlenecks_QD),
        ):
            if rows_ND is not None:
                may_be_empty = ranks.world_size > 1 or name == "extra_bottlenecks_QD"
                check_matrix(name, rows_ND, rows="row", may_be_empty=may_be_empty)
                check_same_width(name, rows_ND, "prototypes_KD", prototypes_KD)
                check_finite(name, rows_ND)
    except ValueError as error:  # raised by all processes together, below
        refusal = error
    _agree(ranks, refusal, bottlenecks_ND, prototypes_KD)

    parts = [bottlenecks_ND]
    if extra_bottlenecks_QD is not None:
        parts.append(extra_bottlenecks_QD)
    dtype = compute_dtype(*parts, prototypes_KD)
    with torch.autocast(bottlenecks_ND.device.type, enabled=False):
        rows_ND = torch.cat([ranks.concatenate(part.to(dtype)) for part in parts])
        if implementation == "reference":
            return _reference(rows_ND, prototypes_KD.to(dtype), temperature, iterations, relaxation)
        own = prototypes_KD[ranks.share(len(prototypes_KD))]
        largest_share = -(-len(prototypes_KD) // ranks.world_size)
        return ranks.concatenate(
            solve_bias(rows_ND, own, temperature, iterations, relaxation, ranks, largest_share)
        )


def _agree(
    ranks: Ranks, refusal: ValueError | None, bottlenecks_ND: Tensor, prototypes_KD: Tensor
) -> None:
    """Raise in every process if one has to: the others would wait for it for ever."""
    if ranks.world_size == 1:
        if refusal is not None:
            raise refusal
        return
    own = [int(refusal is not None), len(bottlenecks_ND), *prototypes_KD.shape]
    reports = ranks.numbers(own, bottlenecks_ND.device)
    if refusal is not None:
        raise refusal
    for rank, (refused, *_) in enumerate(reports):
        if refused:
            raise ValueError(f"process {rank} of the group refused its arguments; see its error")
    shapes = [tuple(shape) for _, _, *shape in reports]
    if len(set(shapes)) > 1:
        raise ValueError(f"prototypes_KD has shapes {shapes}; expected the same in every process")
    if not any(rows for _, rows, *_ in reports):
        raise ValueError("bottlenecks_ND has 0 rows in every process; expected at least one row")


def _reference(
    rows_ND: Tensor, prototypes_KD: Tensor, temperature: float, iterations: int, relaxation: float
) -> Tensor:
    """The two equations as they are written, all logits in memory."""
    logits_NK = (rows_ND / temperature) @ prototypes_KD.T
    row_bias_N = logits_NK.new_zeros(len(logits_NK))
    for _ in range(iterations):
        bias_K = (relaxation - 1) * torch.logsumexp(logits_NK + row_bias_N[:, None], dim=0)
        row_bias_N = -torch.logsumexp(logits_NK + bias_K, dim=1)
    return bias_K
