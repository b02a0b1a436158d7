"""The one line at the end: yes only where every interval is above 0."""

import pytest

from dino_x.evaluation.worth import worth


def finding(**differences):
    """A verdict with (low, high) by name."""
    return {
        "differences": {
            name: {"value": (low + high) / 2, "low": low, "high": high}
            for name, (low, high) in differences.items()
        }
    }


@pytest.mark.parametrize(
    ("pixels", "random", "answer"),
    [
        ((0.01, 0.05), (0.1, 0.2), "yes"),
        ((-0.01, 0.05), (0.1, 0.2), "open"),
        ((-0.05, -0.01), (0.1, 0.2), "no"),
        ((0.0, 0.05), (0.1, 0.2), "open"),
    ],
)
def test_it_is_yes_only_if_all_that_is_free_is_beaten_in_every_task(pixels, random, answer):
    verdicts = {
        "knn": finding(pixels=(0.02, 0.04), random=(0.1, 0.2), other=(-0.5, -0.4)),
        "linear": finding(pixels=pixels, random=random),
    }
    found = worth(verdicts, {})
    assert found["answer"] == answer
    assert "against raw pixels: kNN +0.030 (+0.020 to +0.040), linear probe" in found["sentence"]
    assert "other" not in found["sentence"]


def test_the_weights_it_started_from_are_free_too():
    verdicts = {"knn": finding(pixels=(0.1, 0.2), random=(0.1, 0.2), start=(-0.2, -0.1))}
    found = worth(verdicts, {})
    assert found["answer"] == "no"
    assert "against starting weights: kNN -0.150" in found["sentence"]


def test_nothing_is_told_of_a_model_that_was_trained_on_tested_images():
    verdicts = {"knn": finding(pixels=(0.1, 0.2), random=(0.1, 0.2))}
    found = worth(verdicts, {"model": {"tested": 10, "trained_on": 1}})
    assert found["answer"] == "open"
    assert "trained on tested images" in found["sentence"]
