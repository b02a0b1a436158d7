"""SIGReg against the definition written out in float64, with all numbers in memory."""

import math
from importlib import import_module

import pytest
import torch

from dino_x.losses import random_directions, sigreg


def oracle(features_ND, directions_DM, knots):
    """The statistic of Epps and Pulley, by complex exponentials and torch's trapezoid rule."""
    features_ND = features_ND.detach().double().requires_grad_()
    t = torch.linspace(-5, 5, knots, dtype=torch.float64)
    projections = features_ND @ directions_DM.double()
    empirical = torch.exp(1j * t[:, None, None] * projections).mean(dim=1)  # [T, M]
    normal = torch.exp(-(t**2) / 2)[:, None]
    integrand = (empirical - normal).abs().square() * normal
    value = len(features_ND) * torch.trapezoid(integrand, t, dim=0).mean()
    return value.detach(), torch.autograd.grad(value, features_ND)[0]


def rows_of(rows, dim, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rows + dim)
    return (0.3 + 1.5 * torch.randn(rows, dim, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.fixture(params=["all at once", "a few rows at a time"])
def _chunks(request, monkeypatch):
    if request.param == "a few rows at a time":
        module = import_module("dino_x.losses.sigreg")
        monkeypatch.setattr(module, "working_bytes", lambda device: 10_000)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)],
)
@pytest.mark.parametrize(
    ("rows", "dim", "directions", "knots"),
    [(1, 3, 5, 17), (33, 7, 11, 17), (40, 5, 3, 8), (210, 65, 9, 2), (64, 1, 1, 3)],
)
def test_value_and_gradient_match_the_definition(rows, dim, directions, knots, dtype, tolerance):
    features = rows_of(rows, dim, dtype).requires_grad_()
    along = random_directions(dim, directions, seed=4)
    loss = sigreg(features, along, knots)
    loss.backward()
    expected, gradient = oracle(features, along, knots)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=tolerance)
    error = (features.grad.double() - gradient).norm() / gradient.norm()
    assert float(error) < tolerance


def test_rows_of_a_standard_normal_have_about_the_value_that_theory_says():
    """N times the squared distance of an empirical characteristic function from its own has the
    mean of 1 - exp(-t^2), whatever N is: its integral with exp(-t^2 / 2) is 1.059."""
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    generator = torch.Generator().manual_seed(0)
    for rows in (50, 1000):
        samples = torch.randn(200, rows, 16, generator=generator, dtype=torch.float64)
        along = random_directions(16, 20, seed=1)
        values = torch.stack([sigreg(sample, along) for sample in samples])
        assert float(values.mean()) == pytest.approx(expected, rel=0.1)


def test_a_point_a_line_and_wrong_scales_are_far_from_normal():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    along = random_directions(16, 200, seed=1)
    near = float(sigreg(normal, along))
    line = normal[:, :1] * torch.ones(16, dtype=torch.float64)
    for far in (torch.ones_like(normal), line, 3 * normal, 0.3 * normal, normal + 1):
        assert float(sigreg(far, along)) > 10 * near


def test_gradient_descent_makes_rows_normal():
    rows = rows_of(200, 4).requires_grad_()
    optimizer = torch.optim.Adam([rows], lr=0.05)
    first = float(sigreg(rows, random_directions(4, 50, seed=0)))
    for step in range(150):
        optimizer.zero_grad()
        sigreg(rows, random_directions(4, 50, seed=step)).backward()
        optimizer.step()
    assert float(sigreg(rows, random_directions(4, 50, seed=999))) < 0.05 * first
    assert rows.std(dim=0).detach().numpy() == pytest.approx(1, abs=0.2)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    """The largest tensor made is a chunk, not rows x directions x knots."""
    module, sizes = import_module("dino_x.losses.sigreg"), []
    monkeypatch.setattr(module, "working_bytes", lambda device: 100_000)
    made = module.slope
    monkeypatch.setattr(
        module, "slope", lambda p, *rest: (sizes.append(p.numel()), made(p, *rest))[1]
    )
    for rows in (20, 2000):
        sizes.clear()
        features = rows_of(rows, 6).requires_grad_()
        sigreg(features, random_directions(6, 32, seed=0))
        assert max(sizes) * 8 * 8 * 4 <= 100_000  # 8 knots above 0, 8 bytes, 4 copies
        assert sum(sizes) == rows * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_ND": torch.zeros(3)}, "features_ND is"),
        ({"directions_DM": torch.zeros(3, 2)}, "directions_DM has 3 rows; expected 4"),
        ({"knots": 1}, "knots is 1; expected 2 or more"),
        ({"features_ND": torch.full((2, 4), math.nan)}, "features_ND is not finite"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {"features_ND": torch.zeros(2, 4), "directions_DM": random_directions(4, 3, 0)}
    with pytest.raises(ValueError, match=message):
        sigreg(**good | change)


def test_directions_are_unit_vectors_of_the_seed_alone():
    one = random_directions(9, 6, seed=5)
    torch.manual_seed(1)
    assert torch.equal(one, random_directions(9, 6, seed=5))
    assert not torch.equal(one, random_directions(9, 6, seed=6))
    torch.testing.assert_close(one.norm(dim=0), torch.ones(6, dtype=torch.float64))
    with pytest.raises(ValueError, match="directions is 0"):
        random_directions(9, 0, seed=5)
