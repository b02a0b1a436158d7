"""Metrics on draws of patients are those of scikit-learn on the images drawn, one by one."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from dino_x.evaluation import bootstrap
from dino_x.evaluation.bootstrap import (
    Draws,
    Metric,
    balanced_accuracy_of_draws,
    draw_patients,
    macro_auroc_of_draws,
    mean_of_draws,
)


def drawn_images(draws, number):
    """The rows of one draw, an image as often as its patient was drawn."""
    times = draws.counts_RP[number].astype(int)
    return np.repeat(np.arange(len(draws.patient_Q)), times[draws.patient_Q])


def case(images, patients, class_count, seed=0):
    """Classes, scores with many ties, and draws; every class is there."""
    rng = np.random.default_rng(seed)
    classes = np.concatenate([np.arange(class_count), rng.integers(class_count, size=images)])
    classes = classes[:images]
    scores = (rng.random((images, class_count)) + 0.2 * np.eye(class_count)[classes]).round(1)
    names = np.array([f"p{p}" for p in rng.integers(patients, size=images)])
    return classes, scores, draw_patients(names, seed, draws=40)


@pytest.mark.parametrize(
    ("images", "patients", "class_count"), [(5, 3, 2), (83, 83, 2), (101, 17, 3), (67, 31, 5)]
)
def test_each_draw_has_the_metrics_of_scikit_learn_on_its_images(
    images, patients, class_count, monkeypatch
):
    monkeypatch.setattr(bootstrap, "CHUNK_ELEMENTS", 7 * images)  # several chunks, the last odd
    classes, scores, draws = case(images, patients, class_count)
    predicted = scores.argmax(axis=1)
    accuracies = balanced_accuracy_of_draws(draws, classes, predicted, class_count)
    areas = macro_auroc_of_draws(draws, classes, scores)
    for number in range(40):
        rows = drawn_images(draws, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # predicted classes that are not among the true ones
            accuracy = balanced_accuracy_score(classes[rows], predicted[rows])
        assert accuracies[number] == pytest.approx(accuracy, abs=1e-12)
        one_against_rest = [
            roc_auc_score(classes[rows] == c, scores[rows, c])
            for c in ([1] if class_count == 2 else range(class_count))
            if 0 < (classes[rows] == c).mean() < 1
        ]
        if one_against_rest:
            assert areas[number] == pytest.approx(np.mean(one_against_rest), abs=1e-12)
        else:
            assert np.isnan(areas[number])


def test_a_class_that_a_draw_lacks_takes_no_part():
    classes, predicted = np.array([0, 1, 2]), np.array([0, 0, 2])
    draws = Draws(np.array([[1.0, 2, 0], [3, 0, 0]]), np.arange(3))
    found = balanced_accuracy_of_draws(draws, classes, predicted, 3)
    np.testing.assert_allclose(found, [0.5, 1.0])
    areas = macro_auroc_of_draws(draws, classes, np.eye(3)[predicted])
    np.testing.assert_allclose(areas, [0.5, np.nan])


def test_draws_without_a_value_are_left_out_of_the_interval():
    low, high = Metric(0.5, np.array([np.nan, 0.2, 0.4, np.nan])).interval
    assert (low, high) == pytest.approx((0.205, 0.395))


def test_whole_patients_are_drawn():
    """Three copies of each patient's image tell no more than one."""
    classes, scores, _ = case(37, 37, 2)
    names = np.array([f"p{i}" for i in range(37)])
    once = draw_patients(names, seed=5)
    thrice = draw_patients(np.repeat(names, 3), seed=5)
    predicted = scores.argmax(axis=1)
    one = balanced_accuracy_of_draws(once, classes, predicted, 2)
    three = balanced_accuracy_of_draws(thrice, np.repeat(classes, 3), np.repeat(predicted, 3), 2)
    np.testing.assert_allclose(three, one)
    one = macro_auroc_of_draws(once, classes, scores)
    three = macro_auroc_of_draws(thrice, np.repeat(classes, 3), np.repeat(scores, 3, axis=0))
    np.testing.assert_allclose(three, one)


def test_the_draws_are_those_of_the_seed_and_not_of_the_names():
    names = np.array(["b", "a", "b", "c"])
    first, again = draw_patients(names, 3), draw_patients(np.array(["x", "y", "x", "z"]), 3)
    np.testing.assert_array_equal(first.counts_RP, again.counts_RP)
    np.testing.assert_array_equal(first.patient_Q, [0, 1, 0, 2])
    assert first.counts_RP.shape == (1000, 3)
    assert set(first.counts_RP.sum(axis=1)) == {3.0}
    assert (draw_patients(names, 4).counts_RP != first.counts_RP).any()


def test_means_are_over_the_images_of_a_draw():
    _, scores, draws = case(29, 11, 2)
    found = mean_of_draws(draws, scores[:, 0])
    expected = [scores[drawn_images(draws, number), 0].mean() for number in range(40)]
    np.testing.assert_allclose(found, expected)


def test_the_interval_is_that_of_the_binomial_law_where_there_is_one():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.8
    draws = draw_patients(np.arange(400).astype(str), 0)
    low, high = Metric(right.mean(), mean_of_draws(draws, right.astype(float))).interval
    error = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert high - low == pytest.approx(2 * error, rel=0.1)
    assert low < right.mean() < high


def test_differences_are_paired():
    draws_R = np.random.default_rng(0).normal(size=1000)
    better = Metric(0.51, draws_R + 0.01) - Metric(0.5, draws_R)
    assert better.value == pytest.approx(0.01)
    assert better.interval == pytest.approx((0.01, 0.01))
