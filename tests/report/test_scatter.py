"""The map of features: what it says about groups is known here."""

import json
import re
from html import unescape

import numpy as np
import pytest

from dino_x.report.scatter import feature_maps, same_group

RNG = np.random.default_rng(0)
TWO = np.array([[10.0, 0, 0], [0, 10.0, 0]])
LABELS = ["ill"] * 10 + ["well"] * 10
FEATURES = np.repeat(TWO, 10, axis=0) + RNG.normal(size=(20, 3)) / 10


def test_the_nearest_image_is_of_the_same_group_or_as_by_chance():
    assert same_group(FEATURES, LABELS) == (1.0, pytest.approx(90 * 2 / 380))
    mixed = ["a", "b"] * 10
    noise = np.random.default_rng(1).normal(size=(2000, 8))
    same, chance = same_group(noise, mixed * 100)
    assert same == pytest.approx(chance, abs=0.05)


def test_a_map_for_each_kind_that_differs():
    kinds = {
        "label": LABELS, "patient": [f"patient {n // 5}" for n in range(20)],
        "source": ["1"] * 20, "modality": [None] * 5 + ["CT", "MR", "CT"] * 5,
    }  # fmt: skip
    maps = feature_maps(FEATURES, kinds)
    assert [one.title for one in maps] == ["By label", "By patient"]
    label = maps[0]
    assert label.legend == [(0, "ill", 10), (1, "well", 10)]
    assert "same label in 100%; by chance it would in 47%" in label.words
    assert label.svg.count('class="point dot') == 20
    points = json.loads(unescape(re.search('data-points="([^"]*)"', label.svg)[1]))
    assert points[0][2] == "image 1: ill"
    ill, well = (np.mean([p[0] for p in points[a : a + 10]]) for a in (0, 10))
    assert abs(ill - well) > 200  # far apart on 320 pixels


def test_many_groups_are_the_largest_and_others():
    names = [f"p{n}" for n in range(10) for _ in range(3 if n < 5 else 1)]
    features = RNG.normal(size=(len(names), 4))
    (one,) = feature_maps(features, {"patient": names})
    assert [(name, count) for _, name, count in one.legend][-1] == ("others", 5)
    assert len(one.legend) == 6


def test_few_images_have_no_map():
    assert feature_maps(FEATURES[:7], {"label": LABELS[:7]}) == []
