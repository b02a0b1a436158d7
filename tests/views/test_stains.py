"""Stains: amounts of dyes change, by colour deconvolution as Ruifrok and Johnston wrote it."""

import numpy as np
import pytest
import torch

from dino_x.config.options import ViewOptions
from dino_x.views.stains import (
    DYES_SC,
    StainParameters,
    apply_stains,
    draw_stains,
    stain_parameters,
)

DYES = np.array(DYES_SC) / np.linalg.norm(DYES_SC, axis=1, keepdims=True)


def stains(factors, shifts=(0, 0, 0)):
    """Of one crop."""
    return StainParameters(*(torch.tensor([[float(v)]]).double() for v in (*factors, *shifts)))


def stained(amounts):
    """A pixel with these amounts of haematoxylin, eosin and DAB, [1, 3, 1, 1]."""
    return torch.from_numpy(10 ** -(np.array(amounts) @ DYES))[None, :, None, None]


@pytest.mark.parametrize("amounts", [(0.5, 0, 0), (0, 0.8, 0), (0.3, 0.4, 0.2)])
def test_the_amount_of_each_dye_is_multiplied_and_shifted_by_itself(amounts):
    found = apply_stains(stained(amounts), stains((1.2, 0.7, 1.0), (0.05, 0, 0.1)))
    expected = np.array(amounts) * (1.2, 0.7, 1.0) + (0.05, 0, 0.1)
    torch.testing.assert_close(found, stained(expected))


def test_a_picture_is_changed_as_by_the_equations_pixel_by_pixel():
    rng = np.random.default_rng(0)
    picture = rng.uniform(0.01, 1, (2, 3, 5, 7))
    drawn = torch.from_numpy(draw_stains(rng, 1, 2))
    p = stain_parameters(drawn, ViewOptions(stain=0.3, stain_shift=0.1))
    found = apply_stains(torch.from_numpy(picture), p).numpy()
    for crop in range(2):
        factors = [float(getattr(p, f"factor_{dye}")[0, crop]) for dye in range(3)]
        shifts = [float(getattr(p, f"shift_{dye}")[0, crop]) for dye in range(3)]
        for row, column in np.ndindex(5, 7):
            amounts = np.linalg.solve(DYES.T, -np.log10(picture[crop, :, row, column]))
            expected = 10 ** -((amounts * factors + shifts) @ DYES)
            np.testing.assert_allclose(found[crop, :, row, column], expected.clip(0, 1), rtol=1e-9)


def test_nothing_changes_where_the_factor_is_1_and_the_shift_0_not_even_black():
    picture = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    picture[0, :, 0, 0] = 0
    torch.testing.assert_close(
        apply_stains(picture, stains((1, 1, 1))), picture, rtol=0, atol=1e-15
    )
    drawn = torch.from_numpy(draw_stains(np.random.default_rng(0), 4, 3))
    still = stain_parameters(drawn, ViewOptions())
    assert all((getattr(still, f"factor_{dye}") == 1).all() for dye in range(3))
    assert all((getattr(still, f"shift_{dye}") == 0).all() for dye in range(3))


def test_factors_and_shifts_are_uniform_in_their_ranges():
    drawn = torch.from_numpy(draw_stains(np.random.default_rng(0), 500, 4))
    p = stain_parameters(drawn, ViewOptions(stain=0.2, stain_shift=0.05))
    for dye in range(3):
        factor, shift = getattr(p, f"factor_{dye}"), getattr(p, f"shift_{dye}")
        assert (float(factor.min()), float(factor.max())) == pytest.approx((0.8, 1.2), abs=2e-3)
        assert (float(shift.min()), float(shift.max())) == pytest.approx((-0.05, 0.05), abs=5e-4)
        assert float(factor.mean()) == pytest.approx(1, abs=0.01)


def test_results_stay_in_range_and_black_is_finite():
    picture = torch.rand(1, 3, 9, 9)
    picture[..., 0] = 0
    one = stains((0.05, 1.9, 0.05), (-1, 1, -1))
    found = apply_stains(picture, StainParameters(*(v.float() for v in vars(one).values())))
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
