"""KoLeo against all distances in float64."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from dino_x.losses import koleo
from dino_x.losses.checks import NotFiniteError, checked_late


def random_features(rows: int, dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rows + dim)
    return 3 * torch.randn(rows, dim, generator=generator, dtype=torch.float64).to(dtype)


def oracle(features_ND: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Value and gradient from every distance of every group."""
    features_ND = features_ND.detach().double().requires_grad_()
    unit_ND = features_ND / features_ND.square().sum(1, keepdim=True).sqrt()
    nearest = []
    for group_MD in unit_ND.split(size):
        squared_MM = (group_MD[:, None] - group_MD[None]).square().sum(2)
        others_MM = squared_MM + torch.eye(size).double() * 100
        nearest.append(others_MM.min(1).values.sqrt())
    value = -(torch.cat(nearest) + 1e-8).log().mean()
    return value.detach(), torch.autograd.grad(value, features_ND)[0]


@pytest.fixture(params=["all at once", "a few rows at a time"])
def _search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "a few rows at a time":
        monkeypatch.setattr(import_module("dino_x.losses.koleo"), "SEARCH_ELEMENTS", 50)


@pytest.mark.usefixtures("_search")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize(
    ("rows", "dim", "size"),
    [(2, 1, None), (2, 3, None), (33, 7, None), (33, 7, 11), (40, 5, 2), (210, 65, 105)],
)
def test_value_and_gradient_match_the_definition(
    rows: int, dim: int, size: int | None, dtype: torch.dtype, tolerance: float
) -> None:
    features_ND = random_features(rows, dim, dtype).requires_grad_()
    loss = koleo(features_ND, size)
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected, expected_ND = oracle(features_ND, size or rows)
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=tolerance)
    assert features_ND.grad is not None
    if dim > 1:  # a unit vector of one dimension cannot move
        error = (features_ND.grad.double() - expected_ND).norm() / expected_ND.norm()
        assert float(error) < tolerance


def test_smaller_groups_give_another_value() -> None:
    features_ND = random_features(64, 8)
    assert float(koleo(features_ND, 4)) < float(koleo(features_ND)) - 0.1


def test_equal_rows_give_finite_values_and_gradients() -> None:
    features_ND = torch.ones(6, 4).requires_grad_()
    loss = koleo(features_ND)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-6)
    assert features_ND.grad is not None
    assert bool(torch.isfinite(features_ND.grad).all())


def test_pair_of_equal_rows_among_others_leaves_finite_gradients() -> None:
    features_ND = random_features(9, 4)
    features_ND[5] = features_ND[2]
    features_ND.requires_grad_()
    koleo(features_ND).backward()
    assert features_ND.grad is not None
    assert bool(torch.isfinite(features_ND.grad).all())
    assert float(features_ND.grad.norm()) < 100


def test_nearest_of_rows_that_float32_similarities_cannot_order_is_found() -> None:
    # Distances of 1e-3 change a similarity by 5e-7, of which float32 keeps 3 bits.
    features_ND = (random_features(1, 8) + 5e-4 * random_features(24, 8)).float()
    expected, _ = oracle(features_ND, 24)
    torch.testing.assert_close(koleo(features_ND).double(), expected, rtol=1e-4, atol=0.0)


def test_of_equally_near_rows_the_first_is_the_neighbour() -> None:
    # Row 0 stands in the middle of rows 1 and 2, and is the only one to feel a tie.
    features_ND = torch.tensor([[0.0, 1.0], [0.6, 0.8], [-0.6, 0.8]], dtype=torch.float64)
    for order, direction in (([0, 1, 2], 1.0), ([0, 2, 1], -1.0)):
        rows_ND = features_ND[order].requires_grad_()
        koleo(rows_ND).backward()
        # Rows 1 and 2 pull row 0 alike; what is left is its own pull from the first of them.
        assert rows_ND.grad is not None
        assert float(rows_ND.grad[0, 0]) * direction > 0


def test_same_input_gives_the_same_bits_and_autocast_changes_nothing() -> None:
    # bfloat16 similarities of rows this close are all the same.
    features_ND = 1 + 0.01 * random_features(64, 8, torch.float32)
    plain = koleo(features_ND, 32)
    assert torch.equal(koleo(features_ND, 32), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(koleo(features_ND, 32), plain)


@pytest.mark.parametrize(
    ("features_ND", "size", "message"),
    [
        (torch.ones(0, 3), None, r"features_ND has shape \(0, 3\)"),
        (torch.ones(1, 3), None, "rows of features_ND is 1; expected 2 or more"),
        (torch.ones(6, 3), 1, "group_size is 1; expected 2 or more"),
        (torch.ones(6, 3), 4, "group_size is 4; expected a divisor of the 6 rows"),
        (torch.ones(6, 3) * torch.nan, None, "features_ND is not finite at 6 of 6"),
    ],
)
def test_bad_input_is_refused_by_name(features_ND: Tensor, size: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        koleo(features_ND, size)


@pytest.mark.parametrize("broken", [[2], [0, 1, 2, 3, 4]])
def test_what_is_not_finite_may_be_named_later(broken):
    """Until then nothing else fails, as a wrong index would."""
    features_ND = torch.randn(5, 3)
    features_ND[broken] = torch.nan
    with checked_late() as checks:
        value = koleo(features_ND)
    assert value.isnan()
    with pytest.raises(NotFiniteError, match=f"features_ND is not finite at {len(broken)} of 5"):
        checks.raise_if_any()
    with checked_late() as checks:
        koleo(torch.randn(5, 3))
    checks.raise_if_any()
