"""Few labels: as many patients as there are shots, drawn anew, and an interval that says so."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.evaluation.bootstrap import Metric
from dino_x.evaluation.few_shot import (
    PENALTY_TIMES_WIDTH,
    draw_shots,
    few_shot_probabilities,
    mean_metric,
    possible_shots,
    standardised,
)

from .test_linear import features_of, labelled_images


@pytest.fixture
def labelled():
    """Class a: 20 patients, one with 100 images; class b: 8 patients; 5 of each are tested."""
    patients = [f"a{i}" for i in range(20)] + ["a0"] * 100 + [f"b{i}" for i in range(8)] * 2
    sides = ["test" if int(patient[1:]) >= 15 or patient in ("b6", "b7") else "train"
             for patient in patients]  # fmt: skip
    return labelled_images([patient[0] for patient in patients], sides, patients)


@pytest.mark.parametrize("shots", [1, 5])
def test_each_class_gives_as_many_training_patients_as_shots(labelled, shots):
    for repeat in range(10):
        rows = draw_shots(labelled, shots, repeat, seed=0)
        assert len(set(rows.tolist())) == 2 * shots
        assert not labelled.is_test[rows].any()
        for label in "ab":
            of_class = rows[labelled.labels[rows] == label]
            assert len(set(labelled.patients[of_class])) == shots


def test_a_patient_with_many_images_is_no_likelier_than_another(labelled):
    drawn = [labelled.patients[draw_shots(labelled, 1, repeat, 0)[0]] for repeat in range(300)]
    assert 5 <= drawn.count("a0") <= 40  # 20 expected of 300 over 15 patients, not 263


def test_draws_are_those_of_seed_and_repeat(labelled):
    first = draw_shots(labelled, 5, 0, seed=1)
    np.testing.assert_array_equal(first, draw_shots(labelled, 5, 0, seed=1))
    assert set(first) != set(draw_shots(labelled, 5, 1, seed=1))
    assert set(first) != set(draw_shots(labelled, 5, 0, seed=2))


def test_shots_that_a_class_has_no_patients_for_are_left_out_with_a_sentence(labelled):
    shots, warnings = possible_shots(labelled, (1, 6, 7, 50))
    assert shots == [1, 6]
    assert warnings == ["few-shot with 7 and 50 a class is left out: 'b' has 6 patients in train"]
    assert possible_shots(labelled, (1, 5)) == ([1, 5], [])


def test_it_is_scikit_learns_logistic_regression(labelled):
    classes = np.searchsorted(["a", "b"], labelled.labels)
    features = features_of(classes)
    shots = draw_shots(labelled, 5, 0, seed=0)
    standard = standardised(features, labelled.is_train)
    found = few_shot_probabilities(standard, classes, shots, labelled.is_test)
    scaler = StandardScaler().fit(features[~labelled.is_test].astype(np.float64))
    plain = make_pipeline(scaler, LogisticRegression(C=PENALTY_TIMES_WIDTH / 7))
    plain[1].fit(scaler.transform(features[shots]), classes[shots])
    expected = plain.predict_proba(features[labelled.is_test])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_interval_knows_that_other_images_could_have_been_drawn():
    draws_R = np.zeros(1000)  # no uncertainty from the patients at all
    repeats = [Metric(value, draws_R + value) for value in (0.5, 0.6, 0.7, 0.8)]
    mean = mean_metric(repeats, seed=0)
    low, high = mean.interval
    assert mean.value == pytest.approx(0.65)
    error = 1.96 * np.std([0.5, 0.6, 0.7, 0.8]) / 2  # of the mean of four
    assert high - low == pytest.approx(2 * error, rel=0.15)
