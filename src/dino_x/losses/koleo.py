"""KoLeo: features are pushed away from their nearest neighbour, so that they fill the sphere.

Shape letters: N rows, D features, G groups, M rows of a group, C rows searched at a time.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dino_x.losses.checks import check_at_least, check_finite, check_matrix, compute_dtype

EPSILON = 1e-8  # keeps the logarithm finite for two equal rows
SEARCH_ELEMENTS = 2**22  # similarities held at a time while searching: 16 MiB in float32
CANDIDATES = 4  # neighbours by rounded similarity, among which exact distances decide


def koleo(features_ND: Tensor, group_size: int | None = None) -> Tensor:
    """Kozachenko-Leonenko regulariser: minus the mean log distance to the nearest other row.

    The value depends on the group size: among more rows the nearest one is nearer, so losses of
    different group sizes are not comparable, and gradients differ too.

    Args:
        features_ND: one row an image, [N, D]; L2-normalised here.
        group_size: rows are split into consecutive groups of this many, and a neighbour is
            looked for within the group; ``None`` makes all rows one group.

    Returns: scalar, float32 (float64 for float64 features). Two equal rows give the finite
        value ``-log(1e-8)`` and no gradient, since they have no direction to part in.

    Raises:
        ValueError: if there are no rows, the group size does not divide them, a group has a
            single row, or a feature is not finite.

    Memory: O(N) beyond the features; similarities are searched 16 MiB at a time.

    Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search", equation 3.

    >>> corners = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -3.0]])
    >>> round(float(koleo(corners)), 4)  # on the unit circle each is sqrt(2) from its nearest
    -0.3466
    """
    check_matrix("features_ND", features_ND, rows="feature")
    rows = features_ND.shape[0]
    size = rows if group_size is None else group_size
    check_at_least("group_size" if group_size is not None else "rows of features_ND", size, 2)
    if rows % size:
        raise ValueError(f"group_size is {size}; expected a divisor of the {rows} rows")
    check_finite("features_ND", features_ND)

    with torch.autocast(features_ND.device.type, enabled=False):
        unit_ND = functional.normalize(features_ND.to(compute_dtype(features_ND)), dim=1)
        nearest_N = _nearest_in_group(unit_ND.detach(), size)
        # The distance is taken from the difference: a similarity near 1 has lost its digits.
        distance_N = torch.linalg.vector_norm(unit_ND - unit_ND[nearest_N], dim=1)
        return -(distance_N + EPSILON).log().mean()


@torch.no_grad()
def _nearest_in_group(unit_ND: Tensor, size: int) -> Tensor:
    """Index of each row's nearest other row of its group; of equally near ones the first."""
    groups_GMD = unit_ND.unflatten(0, (-1, size))
    row_step = max(1, min(size, SEARCH_ELEMENTS // size))
    group_step = max(1, SEARCH_ELEMENTS // (size * row_step))
    nearest_GM = torch.empty(groups_GMD.shape[:2], dtype=torch.int64, device=unit_ND.device)
    for group in range(0, len(groups_GMD), group_step):
        some_GMD = groups_GMD[group : group + group_step]
        for start in range(0, size, row_step):
            nearest_GM[group : group + group_step, start : start + row_step] = _nearest_of(
                some_GMD, start, min(start + row_step, size)
            )
    first_row_G1 = torch.arange(0, len(unit_ND), size, device=unit_ND.device)[:, None]
    return (nearest_GM + first_row_G1).flatten()


def _nearest_of(groups_GMD: Tensor, start: int, stop: int) -> Tensor:
    """Nearest neighbours of rows ``start`` to ``stop`` of each group, as indices in the group."""
    rows_GCD = groups_GMD[:, start:stop]
    similarity_GCM = rows_GCD @ groups_GMD.transpose(1, 2)
    own_C = torch.arange(start, stop, device=groups_GMD.device)
    similarity_GCM[:, own_C - start, own_C] = -torch.inf
    count = min(CANDIDATES, groups_GMD.shape[1] - 1)
    # Sorted by index, so that equal distances are decided by the order of the rows.
    candidates = similarity_GCM.topk(count, dim=2).indices.sort(dim=2).values
    group = torch.arange(len(groups_GMD), device=groups_GMD.device)[:, None]
    best_distance = torch.full(rows_GCD.shape[:2], torch.inf, dtype=rows_GCD.dtype)
    best_distance = best_distance.to(groups_GMD.device)
    best = candidates[:, :, 0].clone()
    for choice in range(count):
        candidate_GC = candidates[:, :, choice]
        difference_GCD = rows_GCD - groups_GMD[group, candidate_GC]
        distance_GC = difference_GCD.square().sum(dim=2)
        nearer_GC = distance_GC < best_distance
        best = torch.where(nearer_GC, candidate_GC, best)
        best_distance = torch.where(nearer_GC, distance_GC, best_distance)
    return best
