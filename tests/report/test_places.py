"""How much maps follow position: answers that are known."""

import numpy as np
import pytest

from dino_x.report.places import share_by_position

Y, X = np.mgrid[-1:1:14j, -1:1:14j]


def blob(seed):
    """A round thing at another place in each image, on three colours."""
    rng = np.random.default_rng(seed)
    cy, cx = rng.uniform(-0.8, 0.8, 2)
    inside = ((Y - cy) ** 2 + (X - cx) ** 2 < 0.1).astype(float)
    return np.stack([inside, 1 - inside, 0.5 * inside], axis=2)


def test_colours_of_the_place_follow_position_and_those_of_things_do_not():
    gradient = np.stack([X, Y, X**2 - Y], axis=2)
    assert share_by_position([gradient] * 6) == pytest.approx(1)
    assert share_by_position([blob(seed) for seed in range(6)]) < 0.15
    noise = np.random.default_rng(0).normal(size=(6, 14, 14, 3))
    assert share_by_position(list(noise)) < 0.05


def test_half_of_each_is_in_between():
    """Colours of equal variance, half of them of the place."""
    rng = np.random.default_rng(1)
    place = np.broadcast_to(X[..., None] / X.std(), (14, 14, 3))
    maps = [place + rng.normal(size=(14, 14, 3)) for _ in range(6)]
    assert share_by_position(maps) == pytest.approx(0.5, abs=0.05)


def test_maps_of_one_colour_follow_nothing_and_sizes_may_differ():
    assert share_by_position([np.full((4, 4, 3), 0.5)] * 2) == 0
    y, x = np.mgrid[-1:1:6j, -1:1:9j]
    assert share_by_position([np.stack([X, Y], 2), np.stack([x, y], 2)]) == pytest.approx(1)
