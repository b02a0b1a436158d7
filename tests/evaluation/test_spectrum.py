"""RankMe and alpha-ReQ against their formulas written out in numpy."""

import math

import numpy as np
import pytest
import torch

from dino_x.evaluation.spectrum import alpha_req, rankme

SHAPES = [(1, 7), (7, 1), (5, 5), (33, 12), (12, 33), (101, 57)]


def features(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) * np.geomspace(1, 1e-3, columns)
    return rng.normal(size=(rows, columns)) @ mixing + 0.3


def plain_rankme(features_ND):
    """Garrido et al. 2023, equation 1, from the eigenvalues of the smaller Gram matrix."""
    sigma = np.linalg.svd(features_ND, compute_uv=False)
    entropy = 0.0
    for value in sigma:
        share = value / sum(sigma) + 1e-7
        entropy -= share * math.log(share)
    return math.exp(entropy)


def plain_alpha(features_ND):
    """The slope of log eigenvalue on log rank, weight 1 / rank, by the normal equations."""
    eigenvalues = np.sort(np.linalg.eigvalsh(np.cov(features_ND, rowvar=False, bias=True)))[::-1]
    kept = eigenvalues[: min(len(features_ND) - 1, features_ND.shape[1])]
    rank = np.arange(1, len(kept) + 1)
    design = np.stack([np.ones(len(kept)), np.log(rank)], axis=1)
    weights = np.diag(1 / rank)
    solution = np.linalg.solve(design.T @ weights @ design, design.T @ weights @ np.log(kept))
    return -solution[1]


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_rankme_is_the_published_formula(rows, columns):
    x = features(rows, columns)
    assert rankme(torch.from_numpy(x)) == pytest.approx(plain_rankme(x), rel=1e-9)


def test_rankme_of_features_of_low_rank():
    """Where singular values are 0: from squared ones they would be 1e-8 and count."""
    x = features(60, 4) @ features(4, 40, seed=1)
    assert rankme(torch.from_numpy(x)) == pytest.approx(plain_rankme(x), rel=1e-9)


@pytest.mark.parametrize(("rows", "columns"), [(33, 12), (12, 33), (101, 57), (9, 3)])
def test_alpha_req_is_the_slope_of_the_spectrum(rows, columns):
    x = features(rows, columns)
    assert alpha_req(torch.from_numpy(x)) == pytest.approx(plain_alpha(x), rel=1e-6)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
def test_alpha_req_finds_the_exponent_of_a_power_law(exponent):
    scale = torch.arange(1, 31, dtype=torch.float64) ** (-exponent / 2)
    rows = torch.cat([torch.diag(scale), -torch.diag(scale)]) + 5.0
    assert alpha_req(rows) == pytest.approx(exponent, abs=1e-9)


def test_neither_depends_on_the_scale():
    x = torch.from_numpy(features(40, 16))
    assert rankme(1e6 * x) == pytest.approx(rankme(x), rel=1e-9)
    assert alpha_req(1e6 * x) == pytest.approx(alpha_req(x), rel=1e-9)


def test_equal_rows_have_rank_one_and_no_decay():
    x = torch.ones(20, 8)
    assert rankme(x) == pytest.approx(1.0, abs=1e-4)
    assert math.isnan(alpha_req(x))
    assert rankme(torch.zeros(20, 8)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("function", [rankme, alpha_req])
@pytest.mark.parametrize(
    "wrong", [torch.zeros(0, 3), torch.zeros(3), torch.full((3, 2), torch.nan)]
)
def test_what_is_no_matrix_of_numbers_is_refused(function, wrong):
    with pytest.raises(ValueError, match="features_ND"):
        function(wrong)
