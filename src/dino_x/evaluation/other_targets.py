"""The metrics of one set of features where an image has several labels, or a number.

The tasks are the same two, on the same draws of patients for all features: nearest neighbours, and
a linear map of frozen features.

N images, D features, L labels, Q tested images, R draws of patients.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from dino_x.data.index.label_kinds import NUMBERS, Targets
from dino_x.data.index.labels import Labelled
from dino_x.errors import UserError
from dino_x.evaluation.bootstrap import (
    Draws,
    Metric,
    average_precision_of_draws,
    draw_patients,
    mean_of_draws,
)
from dino_x.evaluation.classify import ALL, MAIN_K, Metrics, best_pixels
from dino_x.evaluation.contenders import MODEL, PIXELS
from dino_x.evaluation.details import auroc, details_of_labels
from dino_x.evaluation.knn import TEMPERATURE, knn_means
from dino_x.evaluation.linear import MOST_ITERATIONS, PENALTIES, UNCHOSEN
from dino_x.evaluation.units import Units, UnitScores
from dino_x.evaluation.validation import validation

STRENGTHS = tuple(10.0**exponent for exponent in range(6, -3, -1))  # of ridge, strongest first
TASKS = ("knn", "linear")


class OtherTargets:
    """Images with several labels or a number, and everything that is drawn once for all features.

    Attributes:
        metric: the name of the one that verdicts are about.
        scores: of the tested images in the setting that a verdict is about, by task and name.
        warnings: sentences for the user.
    """

    def __init__(self, labelled: Labelled, targets: Targets, seed: int, ks: Sequence[int]) -> None:
        self.labelled, self.ks = labelled, ks
        self.draws = draw_patients(labelled.patients[labelled.is_test], seed)
        self.validation = validation(labelled)
        self.chosen: dict[str, list[float]] = {}
        self.pixel_form: dict[str, str] = {}
        self.scores: dict[str, dict[str, np.ndarray]] = {}
        self.numbers = targets.kind == NUMBERS
        self.metric = "r2" if self.numbers else "auroc"
        names, values_NL = _testable(targets, labelled)
        self.names, self.values_NL = names, values_NL
        self.warnings = []
        left_out = [name for name in targets.names if name not in names]
        if left_out:
            self.warnings = [
                "labels that all or no images of train or of the tested split have are left out:"
                f" {', '.join(left_out[:3])}"
                + f" and {len(left_out) - 3} more"
                * (len(left_out) > 3)
            ]

    def score(self, task: str, name: str, features_ND: np.ndarray) -> Metrics:
        """The metrics of a task.

        Raises:
            UserError: for features that are not finite.
        """
        if not np.isfinite(features_ND).all():
            raise UserError(f"the features of {name} are not finite: were the weights NaN?")
        if name == PIXELS:
            features_ND = self._best_pixels(task, features_ND)
        found = self._scores(task, name, features_ND)
        self.scores.setdefault(task, {})[name] = found[self.main_setting(task, found)]
        return {setting: self._metrics(scores) for setting, scores in found.items()}

    def _scores(self, task: str, name: str, features_ND: np.ndarray) -> dict[str, np.ndarray]:
        """The scores of the tested images, [Q, L], by setting."""
        train, test = self.labelled.is_train, self.labelled.is_test
        if task == "knn":
            found = knn_means(features_ND[train], self.values_NL[train], features_ND[test], self.ks)
            return {str(k): scores_QL for k, scores_QL in found.items()}
        strengths = [UNCHOSEN] * len(self.names)
        if self.validation.folds:
            strengths, _ = self._choose([features_ND] * len(self.validation.folds))
        self.chosen[name] = strengths
        return {ALL: self._linear(features_ND, self.validation.fitted, test, strengths)}

    def details(self, task: str) -> dict[str, Any]:
        """Each label by itself, of the model that is evaluated; {} for numbers."""
        if self.numbers:
            return {}
        true_QL = self.values_NL[self.labelled.is_test]
        scores_QL = self.scores[task][MODEL]
        metrics = metrics_of_labels(self.draws, true_QL.astype(int), scores_QL)
        return details_of_labels(true_QL, scores_QL, metrics, self.names)

    def of_units(self, units: Units, scores_QM: np.ndarray) -> UnitScores:
        """The metrics of volumes, slides or patients from the scores of their images."""
        true_QL = self.values_NL[self.labelled.is_test]
        scores_UL, all_U = units.means(scores_QM), np.ones(units.count, dtype=bool)
        draws = units.draws(self.draws, all_U)
        if self.numbers:
            true_UL = units.means(true_QL)
            metrics = number_metrics(draws, true_UL[:, 0], scores_UL[:, 0])
            return UnitScores(units.count, 0, metrics)
        true_UL = np.stack([units.extremes(true_Q)[1] for true_Q in true_QL.T], axis=1)
        some_L = (true_UL.min(axis=0) < 1) & (true_UL.max(axis=0) > 0)
        if not some_L.all():
            names = [name for name, some in zip(self.names, some_L, strict=True) if not some]
            missing = f"every {units.name} has the label '{names[0]}'"
            return UnitScores(units.count, 0, {}, missing)
        return UnitScores(units.count, 0, label_metrics(draws, true_UL.astype(int), scores_UL))

    def main_setting(self, task: str, metrics: Mapping[str, Any]) -> str:
        """The setting of a task that its verdict is about."""
        if task == "linear":
            return ALL
        numbers = [int(setting) for setting in metrics]
        small_enough = [number for number in numbers if number <= MAIN_K]
        return str(max(small_enough, default=min(numbers)))

    def described(self, task: str) -> dict[str, Any]:
        """The JSON's entries on how a task was done."""
        kind = {"labels": list(self.names), "pixels": self.pixel_form.get(task)}
        if task == "knn":
            return {"temperature": TEMPERATURE, **kind}
        folds = len(self.validation.folds)
        return {"chosen": self.chosen, "validation": self.validation.how, "folds": folds, **kind}

    def thin_classes(self) -> list[str]:
        """Sentences for the user."""
        return self.warnings

    def _metrics(self, scores_QL: np.ndarray) -> dict[str, Metric]:
        true_QL = self.values_NL[self.labelled.is_test]
        if self.numbers:
            return number_metrics(self.draws, true_QL[:, 0], scores_QL[:, 0])
        return label_metrics(self.draws, true_QL.astype(int), scores_QL)

    def _best_pixels(self, task: str, pixels_ND: np.ndarray) -> np.ndarray:
        """The form of the pixels that does best on the validation images."""
        fitted = self.validation.fitted if task == "linear" else self.labelled.is_train
        form, best_ND = best_pixels(
            pixels_ND, self.validation, task, fitted, partial(self._loss, task)
        )
        self.pixel_form[task] = form
        return best_ND

    def _loss(self, task: str, features: Sequence[np.ndarray]) -> float:
        """How badly features, of each fold, do on the validation images: less is better."""
        if task == "linear":
            return self._choose(features)[1]
        scores, true = [], []
        for features_ND, fold in zip(features, self.validation.folds, strict=True):
            known, asked = features_ND[fold.fit], features_ND[fold.choose]
            found = knn_means(known, self.values_NL[fold.fit], asked, [MAIN_K])
            scores.append(next(iter(found.values())))
            true.append(self.values_NL[fold.choose])
        scores_HL, true_HL = np.concatenate(scores), np.concatenate(true)
        if self.numbers:
            return float(((scores_HL - true_HL) ** 2).mean())
        return 1 - _mean_auroc(true_HL, scores_HL)

    def _choose(self, features: Sequence[np.ndarray]) -> tuple[list[float], float]:
        """The regularisation of each label with the least squared error, and the mean of these."""
        tried = STRENGTHS if self.numbers else PENALTIES
        errors_TL = np.stack([self._errors(features, value) for value in tried])
        best_L = errors_TL.argmin(axis=0)
        return [tried[best] for best in best_L], float(errors_TL.min(axis=0).mean())

    def _errors(self, features: Sequence[np.ndarray], strength: float) -> np.ndarray:
        """The mean squared error of each label on the images that are held back, [L]."""
        strengths, squared = [strength] * len(self.names), []
        for features_ND, fold in zip(features, self.validation.folds, strict=True):
            scores_QL = self._linear(features_ND, fold.fit, fold.choose, strengths)
            squared.append((scores_QL - self.values_NL[fold.choose]) ** 2)
        mean_L: np.ndarray = np.concatenate(squared).mean(axis=0)
        return mean_L

    def _linear(
        self, features_ND: np.ndarray, fit: np.ndarray, tested: np.ndarray, strengths: list[float]
    ) -> np.ndarray:
        """The probability of each label, or the number, by a linear map of the features, [Q, L]."""
        scaler = StandardScaler().fit(features_ND[fit].astype(np.float64))
        known, asked = (scaler.transform(features_ND[rows]) for rows in (fit, tested))
        columns = []
        for number, strength in enumerate(strengths):
            values = self.values_NL[fit, number]
            if self.numbers:
                columns.append(Ridge(alpha=strength).fit(known, values).predict(asked))
            elif len(set(values.tolist())) < 2:
                columns.append(np.full(len(asked), values.mean()))
            else:
                columns.append(_probability(known, values, asked, strength))
        return np.stack(columns, axis=1)


def label_metrics(draws: Draws, true_QL: np.ndarray, scores_QL: np.ndarray) -> dict[str, Metric]:
    """AUROC and average precision, each a mean over the labels.

    Args:
        draws: of the patients.
        true_QL: 0 or 1.
        scores_QL: larger for labels that are more likely there.
    """
    labels = metrics_of_labels(draws, true_QL, scores_QL)
    return {name: _mean([metrics[name] for metrics in labels]) for name in labels[0]}


def metrics_of_labels(
    draws: Draws, true_QL: np.ndarray, scores_QL: np.ndarray
) -> list[dict[str, Metric]]:
    """AUROC and average precision of each label; arguments as in ``label_metrics``."""
    found = []
    for true_Q, score_Q in zip(true_QL.T, scores_QL.T, strict=True):
        precision = float(average_precision_score(true_Q, score_Q))
        drawn_R = average_precision_of_draws(draws, true_Q, score_Q)
        found.append({
            "auroc": auroc(draws, true_Q > 0, score_Q),
            "average_precision": Metric(precision, drawn_R),
        })  # fmt: skip
    return found


def number_metrics(draws: Draws, true_Q: np.ndarray, found_Q: np.ndarray) -> dict[str, Metric]:
    """R2, the share of the variance that is told, and the mean absolute error.

    Args:
        draws: of the patients.
        true_Q: the numbers.
        found_Q: what they are taken for.
    """
    error_Q = found_Q - true_Q
    columns = np.stack([np.ones_like(true_Q), true_Q, true_Q**2, error_Q**2], axis=1)
    count, total, squares, errors = draws.totals(columns).T
    spread = squares - total**2 / count
    with np.errstate(divide="ignore", invalid="ignore"):
        r2_R = np.where(spread > 0, 1 - errors / spread, np.nan)
    return {
        "r2": Metric(float(r2_score(true_Q, found_Q)), r2_R),
        "mae": Metric(float(np.abs(error_Q).mean()), mean_of_draws(draws, np.abs(error_Q))),
    }


def _mean(metrics: list[Metric]) -> Metric:
    """The mean over labels; a draw counts the labels that are defined in it."""
    draws_LR = np.stack([metric.draws_R for metric in metrics])
    defined_LR = np.isfinite(draws_LR)
    with np.errstate(invalid="ignore"):
        draws_R = np.where(defined_LR, draws_LR, 0).sum(axis=0) / defined_LR.sum(axis=0)
    return Metric(float(np.mean([metric.value for metric in metrics])), draws_R)


def _mean_auroc(true_HL: np.ndarray, scores_HL: np.ndarray) -> float:
    """The mean over the labels that some and not all of the images have; 0.5 if there is none."""
    areas = [
        float(roc_auc_score(true_H, scores_H))
        for true_H, scores_H in zip(true_HL.T, scores_HL.T, strict=True)
        if len(set(true_H.tolist())) > 1
    ]
    return float(np.mean(areas)) if areas else 0.5


def _testable(targets: Targets, labelled: Labelled) -> tuple[tuple[str, ...], np.ndarray]:
    """The labels that some and not all images have, in train and in the tested split.

    Raises: UserError if there are none.
    """
    if targets.kind == NUMBERS:
        return targets.names, targets.values_NL
    sides = (labelled.is_train, labelled.is_test)
    means = np.stack([targets.values_NL[rows].mean(axis=0) for rows in sides])
    good: np.ndarray = np.all((means > 0) & (means < 1), axis=0)
    if not good.any():
        raise UserError(
            "no label is there and not there in both train and the tested split: label more"
            " patients, or give a column 'split' that has images with and without it on both sides"
        )
    names = tuple(name for name, kept in zip(targets.names, good, strict=True) if kept)
    return names, targets.values_NL[:, good]


def _probability(
    known: np.ndarray, values: np.ndarray, asked: np.ndarray, penalty: float
) -> np.ndarray:
    classifier = LogisticRegression(C=penalty, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():  # a probe stopped early is a probe; it is scored all the same
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(known, values)
    probability: np.ndarray = classifier.predict_proba(asked)[:, 1]
    return probability
