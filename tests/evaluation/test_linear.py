"""The linear probe is scikit-learn's, chosen on other patients than it is fitted and tested on."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.evaluation.linear import PENALTIES, choose_penalty, linear_probabilities
from dino_x.evaluation.validation import Fold, Validation, validation
from tests.evaluation.labelled import labelled_images


def features_of(classes, width=7, noise=2.0, seed=0):
    """Of very different scales, and a class tells in the first feature."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(classes), width)) * noise
    features[:, 0] += classes
    return (features * 10.0 ** rng.integers(-2, 3, size=width)).astype(np.float32)


def thirds(count):
    """Fit, choose and test rows in turn."""
    number = np.arange(count) % 3
    folds = (Fold(number == 0, number == 1),)
    return Validation(folds, number < 2, "given"), number == 2


def halves(count):
    """Fit and choose rows, and the other way round."""
    odd = np.arange(count) % 2 == 1
    return Fold(odd, ~odd), Fold(~odd, odd)


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
    assert chosen == choose_penalty([features], classes, parts.folds).penalty
    plain = plain_probe(chosen).fit(features[~tested].astype(np.float64), classes[~tested])
    np.testing.assert_allclose(found, plain.predict_proba(features[tested]), atol=2e-3)


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("several", [False, True])
def test_the_penalty_is_that_of_the_least_validation_loss(noise, several):
    classes = np.random.default_rng(2).integers(2, size=240)
    features = features_of(classes, width=23, noise=noise)
    folds = halves(240) if several else thirds(240)[0].folds
    losses = {}
    for penalty in PENALTIES:
        held, true = [], []
        for fold in folds:
            plain = plain_probe(penalty).fit(features[fold.fit], classes[fold.fit])
            held.append(plain.predict_proba(features[fold.choose]))
            true.append(classes[fold.choose])
        weights = 1 / np.bincount(np.concatenate(true))[np.concatenate(true)]
        losses[penalty] = log_loss(
            np.concatenate(true), np.concatenate(held), sample_weight=weights
        )
    found = choose_penalty([features] * len(folds), classes, folds)
    assert found.penalty == min(losses, key=losses.get)
    assert found.loss == pytest.approx(min(losses.values()), abs=1e-3)


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


def test_with_too_few_patients_nothing_is_chosen_and_all_are_fitted():
    labelled = labelled_images("aabbab", ["train"] * 4 + ["test"] * 2, list("uuwwyz"))
    parts = validation(labelled)
    assert parts.how == "none"
    assert parts.fitted.sum() == 4
    found, _ = linear_probabilities(
        np.eye(6, dtype=np.float32), np.array([0, 0, 1, 1, 0, 1]), parts, labelled.is_test
    )
    assert found.shape == (2, 2)
