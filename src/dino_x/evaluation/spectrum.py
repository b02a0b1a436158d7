"""How many directions a set of features uses, from its spectrum alone: no labels, no training.

N rows (images or views), D features, R = min(N, D).
"""

import math

import torch
from torch import Tensor

EPSILON = 1e-7  # RankMe's, added to each share so that its logarithm is finite
TOLERANCE = 1e-12  # of the largest eigenvalue: what is below is rounding of float64


def singular_values(features_ND: Tensor) -> Tensor:
    """Singular values, largest first, float64 [R], on the CPU.

    Raises: ValueError for what is no matrix of finite numbers with at least one row and column.
    """
    if features_ND.ndim != 2 or 0 in features_ND.shape:
        raise ValueError(f"features_ND has shape {tuple(features_ND.shape)}; expected [N, D]")
    features_ND = features_ND.detach().to("cpu", torch.float64)
    if not bool(features_ND.isfinite().all()):
        raise ValueError("features_ND is not finite; expected finite values")
    return torch.linalg.svdvals(features_ND)


def rankme(features_ND: Tensor) -> float:
    """RankMe, the effective rank: exp of the entropy of the normalised singular values.

    Features are taken as they are: neither centred nor normalised. Where all rows share a large
    common part, that is one direction, and the value is near 1.

    Args:
        features_ND: N rows of D features, any floating-point type. The value depends on N and D:
            compare values of the same N and D only.

    Returns: about 1 (all rows along one direction) to R (all directions used alike).

    Raises: ValueError for what is no matrix of finite numbers.

    Source: Garrido et al. 2023, "RankMe", equation 1, with its epsilon of 1e-7; Roy and Vetterli
        2007 for the effective rank.

    >>> round(rankme(torch.eye(4)), 3), round(rankme(torch.ones(4, 3)), 3)
    (4.0, 1.0)
    """
    sigma_R = singular_values(features_ND)
    share_R = sigma_R / sigma_R.sum().clamp(min=torch.finfo(sigma_R.dtype).tiny) + EPSILON
    return float((-(share_R * share_R.log()).sum()).exp())


def alpha_req(features_ND: Tensor) -> float:
    """alpha-ReQ: how fast the spectrum of the features' covariance falls, as a power law.

    The exponent a of ``eigenvalue[i] ~ i^-a``, by least squares on logarithms. Rank i weighs 1 / i,
    so that each doubling of the rank counts alike; without it the many last ones decide alone.
    About 1 is what the paper finds in features that transfer well; far above 1 few directions hold
    the variance, near 0 all hold the same, as noise does.

    Args:
        features_ND: N rows of D features, any floating-point type; centred here.

    Returns: the exponent; NaN if fewer than two eigenvalues differ from 0, as of equal rows.

    Raises: ValueError for what is no matrix of finite numbers.

    Source: Agrawal et al. 2022, "alpha-ReQ", section 3; Stringer et al. 2019 for the power law. The
        range (all eigenvalues but zeros) and the weights are ours.

    >>> i = torch.arange(1.0, 6)
    >>> round(alpha_req(torch.cat([torch.diag(1 / i), -torch.diag(1 / i)])), 3)  # i^-2
    2.0
    """
    wide_ND = features_ND.detach().to("cpu", torch.float64)
    eigenvalues_R = singular_values(wide_ND - wide_ND.mean(dim=0)).square()
    kept_R = eigenvalues_R[eigenvalues_R > TOLERANCE * eigenvalues_R[0]]
    if len(kept_R) < 2:
        return math.nan
    rank_R = torch.arange(1, len(kept_R) + 1, dtype=torch.float64)
    weight_R = 1 / rank_R / (1 / rank_R).sum()
    x_R, y_R = rank_R.log(), kept_R.log()
    x_R, y_R = x_R - weight_R @ x_R, y_R - weight_R @ y_R
    return -float((weight_R * x_R) @ y_R / ((weight_R * x_R) @ x_R))
