"""KoLeo: features are pushed away from their nearest neighbour, so that they fill the sphere.

Shape letters: N rows, D features, G groups, M rows of a group, C rows searched at a time,
J candidates of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dino_x.losses.checks import check_at_least, check_finite, check_matrix, compute_dtype

EPSILON = 1e-8  # keeps the logarithm finite for two equal rows
SEARCH_ELEMENTS = 2**22  # similarities held at a time while searching: 16 MiB in float32
CANDIDATES = 8  # neighbours by rounded similarity, among which exact distances decide


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
    """Index of each row's nearest other row of its group; of equally near ones the first, [N]."""
    groups_GMD = unit_ND.unflatten(0, (-1, size))
    rows_at_once = max(1, SEARCH_ELEMENTS // max(size, unit_ND.shape[1]))
    row_step, group_step = min(size, rows_at_once), max(1, rows_at_once // size)
    nearest_GM = torch.empty(groups_GMD.shape[:2], dtype=torch.int64, device=unit_ND.device)
    for first_group in range(0, len(groups_GMD), group_step):
        groups = slice(first_group, first_group + group_step)
        for start in range(0, size, row_step):
            rows = slice(start, min(start + row_step, size))
            nearest_GM[groups, rows] = _nearest_of(groups_GMD[groups], rows)
    first_row_G1 = torch.arange(0, len(unit_ND), size, device=unit_ND.device)[:, None]
    return (nearest_GM + first_row_G1).flatten()


def _nearest_of(groups_GMD: Tensor, rows: slice) -> Tensor:
    """Nearest neighbours of some rows of each group, as indices in the group, [G, C]."""
    rows_GCD = groups_GMD[:, rows]
    similarity_GCM = rows_GCD @ groups_GMD.transpose(1, 2)
    similarity_GCM.diagonal(rows.start, dim1=1, dim2=2).fill_(-torch.inf)  # itself
    count = min(CANDIDATES, groups_GMD.shape[1] - 1)
    # In the order of the rows, so that of equal distances the first row's wins.
    candidates_GCJ = similarity_GCM.topk(count, dim=2).indices.sort(dim=2).values
    group_G1 = torch.arange(len(groups_GMD), device=groups_GMD.device)[:, None]
    distances_GC = [
        (rows_GCD - groups_GMD[group_G1, candidate_GC]).square().sum(dim=2)
        for candidate_GC in candidates_GCJ.unbind(dim=2)
    ]
    choice_GC1 = _first_smallest(torch.stack(distances_GC, dim=2))
    return candidates_GCJ.gather(2, choice_GC1).squeeze(2)


def _first_smallest(values_GCJ: Tensor) -> Tensor:
    """Index of the first of the smallest values, [G, C, 1]; ``argmin`` may return any of them.

    Among NaN none is the smallest. The index is one of a row then, too, for a GPU that is given
    another cannot be used any more, and NaN may be found later than here.
    """
    smallest_GCJ = values_GCJ == values_GCJ.amin(dim=2, keepdim=True)
    first_GC1 = (smallest_GCJ.cumsum(dim=2) == 0).sum(dim=2, keepdim=True)
    return first_GC1.clamp_(max=values_GCJ.shape[2] - 1)
