"""What is said follows from the interval, not from the difference alone."""

import re

import numpy as np
import pytest

from dino_x.evaluation.bootstrap import Metric
from dino_x.evaluation.verdict import verdict


def metric(value, offsets):
    return Metric(value, value + offsets)


@pytest.fixture(scope="module")
def offsets():
    """Of the draws: the same patients are hard for everybody."""
    return np.random.default_rng(0).normal(scale=0.05, size=1000)


@pytest.mark.parametrize(
    ("pixels", "noise", "expected"),
    [
        (0.67, 0.005, r"the model beats raw pixels by 0\.030 \(0\.0[12]\d to 0\.0[34]\d\)"),
        (0.73, 0.005, r"the model is worse than raw pixels by 0\.030 \(0\.0[12]\d to 0\.0[34]\d\)"),
        (0.69, 0.02,
         r"the model cannot be told from raw pixels: 0\.010 \(-0\.0\d\d to 0\.0\d\d\)"),
        (0.71, 0.02,
         r"the model cannot be told from raw pixels: -0\.010 \(-0\.0\d\d to 0\.0\d\d\)"),
    ],
)  # fmt: skip
def test_won_and_lost_only_where_the_whole_interval_says_so(offsets, pixels, noise, expected):
    own = np.random.default_rng(1).normal(scale=noise, size=1000)
    found = verdict(
        {
            "model": metric(0.7, offsets + own),
            "random": metric(0.5, offsets),
            "pixels": metric(pixels, offsets),
        },
        "20",
        "balanced_accuracy",
    )
    assert found["baseline"] == "pixels"
    assert re.fullmatch(expected, found["sentence"]), found["sentence"]


def test_the_best_baseline_is_named_then_the_start_then_the_other_models(offsets):
    values = {"model": 0.7, "random": 0.6, "pixels": 0.65, "start": 0.62, "dinov2": 0.9}
    found = verdict({name: metric(v, offsets) for name, v in values.items()}, "all", "dice")
    assert found["sentence"] == (
        "the model beats raw pixels by 0.050 (0.050 to 0.050); it beats starting weights by 0.080"
        " (0.080 to 0.080); it is worse than dinov2 by 0.200 (0.200 to 0.200)"
    )
    assert (found["setting"], found["metric"], found["baseline"]) == (
        "all",
        "dice",
        "pixels",
    )
    assert list(found["differences"]) == ["random", "pixels", "start", "dinov2"]
    assert found["differences"]["dinov2"] == pytest.approx(
        {"value": -0.2, "low": -0.2, "high": -0.2}
    )


def test_the_same_model_again_is_its_equal(offsets):
    metrics = {"model": metric(0.7, offsets), "pixels": metric(0.7, offsets)}
    assert verdict(metrics, "all", "dice")["sentence"] == "the model equals raw pixels"


def test_another_model_is_no_baseline(offsets):
    values = {"model": 0.7, "random": 0.6, "pixels": 0.65, "dinov2": 0.9}
    found = verdict({name: metric(v, offsets) for name, v in values.items()}, "all", "dice")
    assert found["baseline"] == "pixels"
