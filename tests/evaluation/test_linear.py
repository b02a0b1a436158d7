"""The linear probe is scikit-learn's, chosen on other patients than it is fitted and tested on."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.data.index.labels import Labelled
from dino_x.evaluation.linear import (
    PENALTIES,
    Validation,
    choose_penalty,
    linear_probabilities,
    validation,
)


def labelled_images(labels, sides, patients):
    sides = np.array(sides)
    return Labelled(
        refs=[None] * len(labels), labels=np.array(list(labels)), is_test=sides == "test",
        is_val=sides == "val", patients=np.array(patients), patients_known=True, tested="test",
        split_by="given", left_out={}, warnings=[],
    )  # fmt: skip


def features_of(classes, width=7, noise=2.0, seed=0):
    """Of very different scales, and a class tells in the first feature."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(classes), width)) * noise
    features[:, 0] += classes
    return (features * 10.0 ** rng.integers(-2, 3, size=width)).astype(np.float32)


def thirds(count):
    """Fit, choose and test rows in turn."""
    number = np.arange(count) % 3
    return Validation(number == 0, number == 1, "given"), number == 2


def plain_probe(penalty):
    return make_pipeline(
        StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000)
    )


@pytest.mark.parametrize(("images", "class_count"), [(91, 2), (203, 3)])
def test_it_is_scikit_learns_on_both_fitted_and_chosen_on(images, class_count):
    classes = np.random.default_rng(1).integers(class_count, size=images)
    features = features_of(classes, noise=0.5)
    parts, tested = thirds(images)
    found, chosen = linear_probabilities(features, classes, parts, tested)
    assert chosen == choose_penalty(features, classes, parts).penalty
    plain = plain_probe(chosen).fit(features[~tested].astype(np.float64), classes[~tested])
    np.testing.assert_allclose(found, plain.predict_proba(features[tested]), atol=2e-3)


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_the_penalty_is_that_of_the_least_validation_loss(noise):
    classes = np.random.default_rng(2).integers(2, size=240)
    features = features_of(classes, width=23, noise=noise)
    parts, _ = thirds(240)
    weights = 1 / np.bincount(classes[parts.choose])[classes[parts.choose]]
    losses = {}
    for penalty in PENALTIES:
        plain = plain_probe(penalty).fit(features[parts.fit], classes[parts.fit])
        losses[penalty] = log_loss(
            classes[parts.choose], plain.predict_proba(features[parts.choose]),
            sample_weight=weights,
        )  # fmt: skip
    assert choose_penalty(features, classes, parts).penalty == min(losses, key=losses.get)


def test_what_is_tested_has_no_part_in_it():
    classes = np.random.default_rng(3).integers(2, size=90)
    features = features_of(classes)
    parts, tested = thirds(90)
    before, chosen = linear_probabilities(features, classes, parts, tested)
    last = np.flatnonzero(tested)[1:]
    features[last] *= 1e3
    classes[last] = 1 - classes[last]
    after, chosen_then = linear_probabilities(features, classes, parts, tested)
    assert chosen_then == chosen
    np.testing.assert_array_equal(after[0], before[0])


def test_a_given_val_is_what_is_chosen_on():
    sides = ["train", "train", "val", "val", "test", "test"]
    parts = validation(labelled_images("ababab", sides, list("uvwxyz")))
    assert parts.how == "given"
    assert parts.choose.tolist() == [side == "val" for side in sides]
    assert parts.fit.tolist() == [side == "train" for side in sides]


def test_without_a_val_a_fifth_of_the_training_patients_is_set_aside():
    patients = [str(i // 3) for i in range(120)]  # 40 patients of three images
    labels = ["ab"[int(patient) % 2] for patient in patients]
    sides = ["test" if int(patient) >= 30 else "train" for patient in patients]
    parts = validation(labelled_images(labels, sides, patients))
    assert parts.how == "patient"
    fit, choose = (set(np.array(patients)[rows]) for rows in (parts.fit, parts.choose))
    assert not fit & choose
    assert fit | choose == {str(patient) for patient in range(30)}
    assert len(choose) == 6
    for rows in (parts.fit, parts.choose):
        assert set(np.array(labels)[rows]) == {"a", "b"}


def test_with_too_few_patients_nothing_is_chosen_and_all_are_fitted():
    labelled = labelled_images("aabbab", ["train"] * 4 + ["test"] * 2, list("uvwxyz"))
    parts = validation(labelled)
    assert parts.how == "none"
    assert parts.fit.sum() == 4
    found, _ = linear_probabilities(
        np.eye(6, dtype=np.float32), np.array([0, 0, 1, 1, 0, 1]), parts, labelled.is_test
    )
    assert found.shape == (2, 2)
