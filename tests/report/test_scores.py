"""evaluation.json in words and tables."""

import pytest

from dino_x.report.scores import (
    Score,
    apart,
    better,
    comparisons,
    headlines,
    sentence,
    title_of,
)  # fmt: skip
from tests.report.runs import evaluation_of, figure

NAMES = ("model", "random")


def test_headlines_are_those_of_the_verdicts():
    found = headlines(evaluation_of(0.85))
    assert [(c.task, c.setting, c.metric) for c in found] == [
        ("knn", "20", "balanced_accuracy"), ("linear", "all", "balanced_accuracy"),
    ]  # fmt: skip
    assert len(comparisons(evaluation_of(0.85))) == 6


def test_a_verdict_that_names_a_path_is_quoted_without_it():
    result = evaluation_of(0.85)
    result["verdicts"]["knn"]["sentence"] = "the model beats raw pixels and /home/jane/other"
    knn = headlines(result)[0]
    assert sentence(result, knn) == "the model beats raw pixels and other"
    assert knn.short_title == "kNN, k = 20, balanced accuracy"


def test_a_verdict_is_only_quoted_for_the_figure_it_is_about():
    result = evaluation_of(0.85)
    knn, linear = headlines(result)
    assert sentence(result, knn) == "the model beats raw pixels by 0.050"
    assert sentence(result, linear).startswith("the model is 0.250 above random weights")


@pytest.mark.parametrize(
    ("model", "expected"), [(0.85, True), (0.81, False), (0.70, False), (0.83, False)]
)
def test_better_needs_a_paired_difference_above_zero(model, expected):
    """Of 0.03 half width: 0.83 - 0.80 just touches zero."""
    result = evaluation_of(model)
    assert better(result, headlines(result)[0], "pixels") is expected


def test_without_differences_intervals_decide_and_without_them_nobody():
    result = evaluation_of(0.85)
    result["verdicts"] = {}
    first = headlines(result)[0]
    assert better(result, first, "pixels") is True
    result = evaluation_of(0.83)
    result["verdicts"] = {}
    assert better(result, headlines(result)[0], "pixels") is False
    plain = {"results": {name: {"knn": {"20": {"auroc": {"value": 0.7}}}} for name in NAMES}}
    assert better(plain, headlines(plain)[0], "random") is None


def test_intervals_are_apart_if_they_share_nothing():
    low, high = Score(**figure(0.5)), Score(**figure(0.55))
    assert apart(low, high) is True
    assert apart(low, Score(**figure(0.53))) is False
    assert apart(low, Score(0.9)) is None


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("model", "this model"), ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("/home/jane/runs/two/", "two"), ("../doe/two", "two"), ("a/b/c", "c"), ("~/x/two", "two"),
        ("C:\\Jane\\two", "two"),
    ],
)  # fmt: skip
def test_of_a_path_only_the_last_part_is_named(name, title):
    assert title_of(name) == title
