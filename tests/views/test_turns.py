"""Right-angle turns: exact, counted, and with flips all eight symmetries of a square."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dino_x.config.options import ViewOptions
from dino_x.views.crops import apply_views, draw_views, view_parameters

SOME = ViewOptions(turns=0.75, vertical_flip=0.5)


def drawn(images, views, turns=True):
    generator = np.random.default_rng(1) if turns else None
    return torch.from_numpy(draw_views(np.random.default_rng(0), images, views, None, generator))


def test_a_turned_crop_is_the_crop_turned_pixel_by_pixel():
    canvas = torch.from_numpy(np.random.default_rng(0).random((8, 3, 40, 40)))
    p = view_parameters(drawn(8, 4), torch.ones(8).double(), (0.2, 0.9), 16, SOME)
    still = replace(p, turns=torch.zeros_like(p.turns))
    turned, straight = (apply_views(canvas, one, 16).unflatten(0, (4, 8)) for one in (p, still))
    assert set(p.turns.flatten().tolist()) == {0, 1, 2, 3}
    for image, view in np.ndindex(8, 4):
        expected = torch.rot90(straight[view, image], int(p.turns[image, view]), (1, 2))
        assert torch.equal(turned[view, image], expected)


def test_with_flips_all_eight_symmetries_are_equally_likely():
    canvas = torch.arange(16.0).view(1, 1, 4, 4).double() / 16
    options = ViewOptions(turns=0.75, flip=0.5, vertical_flip=0.5, intensity=0, blur=0)
    one = torch.ones(1).double()
    p = view_parameters(drawn(1, 4000), one, (1, 1), 4, options, blur=(0.0,))
    crops = apply_views(canvas.expand(1, 1, 4, 4), p, 4)
    _, counts = torch.unique(crops.flatten(1).mul(16).round(), dim=0, return_counts=True)
    assert len(counts) == 8
    assert counts.tolist() == pytest.approx([500] * 8, abs=90)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_a_turn_has_its_probability_and_none_is_drawn_without(probability):
    one = torch.ones(1000).double()
    options = ViewOptions(turns=probability)
    turns = view_parameters(drawn(1000, 4), one, (0.2, 0.9), 16, options).turns
    shares = [float((turns == angles).double().mean()) for angles in range(4)]
    assert shares == pytest.approx([1 - probability, *[probability / 3] * 3], abs=0.025)
    for still in (
        view_parameters(drawn(1000, 4), one, (0.2, 0.9), 16, ViewOptions()),
        view_parameters(drawn(1000, 4, turns=False), one, (0.2, 0.9), 16, options),
    ):
        assert (still.turns == 0).all()


def test_the_same_cuts_for_a_gram_teacher_are_turned_too():
    p = view_parameters(drawn(9, 2), torch.ones(9).double(), (0.2, 0.9), 16, SOME)
    assert torch.equal(p.undistorted().turns, p.turns)
