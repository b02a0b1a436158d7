"""The linear probe: how much of the classes a straight cut through the features tells.

N images, D features, C classes.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from dino_x.data.index.labels import Labelled
from dino_x.data.index.splits import Item, make_split

PENALTIES = tuple(10.0**exponent for exponent in range(-5, 3))  # scikit-learn's C, ascending
UNCHOSEN = 1e-2  # where there is nothing to choose on
FIT_SHARE = 0.8  # of the training patients, where a validation set is made of the others
MOST_ITERATIONS = 500


@dataclass(frozen=True)
class Validation:
    """The images that the regularisation is chosen on.

    Attributes:
        fit: [N] bool, images that candidates are fitted on.
        choose: [N] bool, images that they are compared on; patients of no other side.
        how: ``given``, ``patient`` or ``image`` (made from train by these), or ``none``.
    """

    fit: np.ndarray
    choose: np.ndarray
    how: str


@dataclass(frozen=True)
class Choice:
    """A penalty, and the log loss that it has on the validation images."""

    penalty: float
    loss: float


def validation(labelled: Labelled) -> Validation:
    """The given val, else a fifth of the patients of each class of train.

    A val of one class only is no help and counts as none.
    """
    train = labelled.is_train
    if labelled.targets is not None and labelled.is_val.any():
        return Validation(train, labelled.is_val, "given")
    if len(set(labelled.labels[labelled.is_val])) > 1:
        return Validation(train, labelled.is_val, "given")
    rows = np.flatnonzero(train)
    names = zip(labelled.patients[rows].tolist(), labelled.labels[rows].tolist(), strict=True)
    items = [Item(Path(), key=patient, label=label, patient=patient) for patient, label in names]
    choose = np.zeros(len(train), dtype=bool)
    choose[rows] = np.array(make_split(items, FIT_SHARE)) == "test"
    classes_chosen_on = len(set(labelled.labels[choose]))
    classes_fitted_on = len(set(labelled.labels[train & ~choose]))
    if min(classes_chosen_on, classes_fitted_on) < len(
        labelled.classes
    ):  # too few patients of some class to set one aside
        return Validation(train, np.zeros_like(train), "none")
    return Validation(train & ~choose, choose, "patient" if labelled.patients_known else "image")


def linear_probabilities(
    features_ND: np.ndarray,
    classes_N: np.ndarray,
    parts: Validation,
    tested: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised features, its L2 penalty chosen on validation images.

    Every class weighs the same, however many images it has. The penalty is loosened tenfold at a
    time until the loss on the validation images rises; with the best one it is fitted again, on
    what it was fitted and chosen on together. The tested images have no part in any of it.

    Args:
        features_ND: frozen features.
        classes_N: 0 .. C - 1; every class is among ``parts.fit``.
        parts: what to fit on, what to choose on.
        tested: [N] bool, the Q images to classify.

    Returns: probabilities [Q, C], and the C that was chosen (smaller is stronger).

    Source: Alain and Bengio 2017, linear classifier probes; Oquab et al. 2023 (DINOv2), appendix B.
    """
    chosen = UNCHOSEN
    if parts.how != "none":
        chosen = choose_penalty(features_ND, classes_N, parts).penalty
    fitted = parts.fit | parts.choose
    scaler = StandardScaler().fit(features_ND[fitted].astype(np.float64))
    classifier = _classifier(chosen)
    _fit(classifier, scaler.transform(features_ND[fitted]), classes_N[fitted])
    return classifier.predict_proba(scaler.transform(features_ND[tested])), chosen


def choose_penalty(features_ND: np.ndarray, classes_N: np.ndarray, parts: Validation) -> Choice:
    """The C of least loss on the validation images, the mean over their classes of the log loss."""
    scaler = StandardScaler().fit(features_ND[parts.fit].astype(np.float64))
    fitted, held = (scaler.transform(features_ND[rows]) for rows in (parts.fit, parts.choose))
    true = classes_N[parts.choose]
    weights = compute_sample_weight("balanced", true)
    classifier = _classifier(PENALTIES[0])
    best, least = PENALTIES[0], np.inf
    for penalty in PENALTIES:
        classifier.set_params(C=penalty)  # a warm start: each begins where the one before ended
        _fit(classifier, fitted, classes_N[parts.fit])
        probabilities = classifier.predict_proba(held)
        loss = log_loss(true, probabilities, sample_weight=weights, labels=classifier.classes_)
        if loss > least:
            break
        best, least = penalty, loss
    return Choice(best, float(least))


def _classifier(penalty: float) -> LogisticRegression:
    return LogisticRegression(
        C=penalty, class_weight="balanced", max_iter=MOST_ITERATIONS, warm_start=True
    )


def _fit(classifier: LogisticRegression, features: np.ndarray, classes: np.ndarray) -> None:
    with warnings.catch_warnings():  # a probe stopped early is a probe; it is scored all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(features, classes)
