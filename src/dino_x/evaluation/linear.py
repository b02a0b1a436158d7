"""The linear probe: how much of the classes a straight cut through the features tells.

N images, D features, C classes.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from dino_x.evaluation.validation import Fold, Validation

PENALTIES = tuple(10.0**exponent for exponent in range(-5, 3))  # scikit-learn's C, ascending
UNCHOSEN = 1e-2  # where there is nothing to choose on
MOST_ITERATIONS = 500


@dataclass(frozen=True)
class Choice:
    """A penalty, and the log loss that it has on the validation images."""

    penalty: float
    loss: float


def linear_probabilities(
    features_ND: np.ndarray,
    classes_N: np.ndarray,
    parts: Validation,
    tested: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Logistic regression on standardised features, its L2 penalty chosen on validation images.

    Every class weighs the same, however many images it has. The penalty is loosened tenfold at a
    time until the loss on the validation images rises, those of all folds together; with the best
    one it is fitted again, on what it was fitted and chosen on together. The tested images have no
    part in any of it.

    Args:
        features_ND: frozen features.
        classes_N: 0 .. C - 1; every class is among what each fold is fitted on.
        parts: what to fit on, what to choose on.
        tested: [N] bool, the Q images to classify.

    Returns: probabilities [Q, C], and the C that was chosen (smaller is stronger).

    Source: Alain and Bengio 2017, linear classifier probes; Oquab et al. 2023 (DINOv2), appendix B.
    """
    chosen = UNCHOSEN
    if parts.folds:
        chosen = choose_penalty([features_ND] * len(parts.folds), classes_N, parts.folds).penalty
    fitted = parts.fitted
    scaler = StandardScaler().fit(features_ND[fitted].astype(np.float64))
    classifier = _classifier(chosen)
    _fit(classifier, scaler.transform(features_ND[fitted]), classes_N[fitted])
    return classifier.predict_proba(scaler.transform(features_ND[tested])), chosen


@dataclass
class _Candidate:
    """A fold, ready to be fitted with one penalty after another."""

    fit_FD: np.ndarray
    classes_F: np.ndarray
    held_HD: np.ndarray
    classifier: LogisticRegression

    @classmethod
    def of(cls, features_ND: np.ndarray, classes_N: np.ndarray, fold: Fold) -> "_Candidate":
        """The features of a fold, standardised by what is fitted on."""
        scaler = StandardScaler().fit(features_ND[fold.fit].astype(np.float64))
        fitted, held = (scaler.transform(features_ND[rows]) for rows in (fold.fit, fold.choose))
        return cls(fitted, classes_N[fold.fit], held, _classifier(PENALTIES[0]))

    def probabilities(self, penalty: float) -> np.ndarray:
        """Of the images that are held back. A warm start begins where the one before ended."""
        self.classifier.set_params(C=penalty)
        _fit(self.classifier, self.fit_FD, self.classes_F)
        found: np.ndarray = self.classifier.predict_proba(self.held_HD)
        return found


def choose_penalty(
    features: Sequence[np.ndarray], classes_N: np.ndarray, folds: Sequence[Fold]
) -> Choice:
    """The C of least log loss on the images that are held back, the mean over their classes.

    Args:
        features: [N, D] for each fold; those of principal components differ from fold to fold.
        classes_N: 0 .. C - 1; every class is among what each fold is fitted on.
        folds: one or more.
    """
    pairs = zip(features, folds, strict=True)
    candidates = [_Candidate.of(features_ND, classes_N, fold) for features_ND, fold in pairs]
    true = np.concatenate([classes_N[fold.choose] for fold in folds])
    weights = compute_sample_weight("balanced", true)
    best, least = PENALTIES[0], np.inf
    for penalty in PENALTIES:
        held = np.concatenate([candidate.probabilities(penalty) for candidate in candidates])
        classes = candidates[0].classifier.classes_
        loss = log_loss(true, held, sample_weight=weights, labels=classes)
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
