"""The metrics of one set of features in each task that takes classes.

Every task gives ``{setting: {metric: Metric}}``, on the same draws of patients for all features, so
that differences between them are paired.

N images, D features, Q tested images, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dino_x.data.index.labels import Labelled
from dino_x.errors import UserError
from dino_x.evaluation.baselines import CENTERED, component_sizes, pixel_forms
from dino_x.evaluation.bootstrap import (
    Draws,
    Metric,
    balanced_accuracy_of_draws,
    draw_patients,
    macro_auroc_of_draws,
)
from dino_x.evaluation.contenders import MODEL, PIXELS
from dino_x.evaluation.details import details_of_classes
from dino_x.evaluation.few_shot import (
    PENALTY_TIMES_WIDTH,
    REPEATS,
    draw_shots,
    few_shot_probabilities,
    mean_metric,
    possible_shots,
    standardised,
)
from dino_x.evaluation.knn import (
    TEMPERATURE,
    balanced_accuracy,
    knn_probabilities,
    knn_votes,
    macro_auroc,
)
from dino_x.evaluation.linear import choose_penalty, linear_probabilities
from dino_x.evaluation.units import Units, UnitScores
from dino_x.evaluation.validation import Fold, Validation, validation

Metrics = dict[str, dict[str, Metric]]  # by setting and metric

# Pixels are compared in the form that does best on validation images: as they are, or as so many
# principal components. With few labels they keep the scale that they have.
PIXEL_COMPONENTS = {"knn": (16, 64), "linear": (32, 128)}
ALL = "all"  # the one setting of the linear probe
MAIN_SHOTS = 10
MAIN_K = 20
FEW_PATIENTS = 5


class Classification:
    """Labelled images, and everything that is drawn once for all features.

    Attributes:
        scores: probabilities of the tested images, in the setting that a verdict is about, by task
            (kNN and linear probe) and name.
    """

    def __init__(self, labelled: Labelled, seed: int, ks: Sequence[int]) -> None:
        self.labelled, self.seed, self.ks = labelled, seed, ks
        self.classes_N = np.searchsorted(labelled.classes, labelled.labels)
        self.tested_Q = self.classes_N[labelled.is_test]
        self.draws = draw_patients(labelled.patients[labelled.is_test], seed)
        self.validation = validation(labelled)
        self.shots, self.warnings = possible_shots(labelled)
        self.chosen: dict[str, float] = {}
        self.pixel_form: dict[str, str] = {}
        self.scores: dict[str, dict[str, np.ndarray]] = {}

    def score(self, task: str, name: str, features_ND: np.ndarray) -> Metrics:
        """The metrics of a task.

        Raises:
            UserError: for features that are not finite.
        """
        if not np.isfinite(features_ND).all():
            raise UserError(f"the features of {name} are not finite: were the weights NaN?")
        if name == PIXELS and task in PIXEL_COMPONENTS:
            features_ND = self._best_pixels(task, features_ND)
        if task == "few_shot":
            return self._few_shot(features_ND)
        found = self._knn(features_ND) if task == "knn" else self._linear(name, features_ND)
        self.scores.setdefault(task, {})[name] = found[self.main_setting(task, found)]
        return {setting: self._metrics(scores) for setting, scores in found.items()}

    def details(self, task: str) -> dict[str, Any]:
        """Each class by itself, of the model that is evaluated; see details.py."""
        scores_QC = self.scores[task][MODEL]
        return details_of_classes(self.draws, self.tested_Q, scores_QC, self.labelled.classes)

    def of_units(self, units: Units, scores_QM: np.ndarray) -> UnitScores:
        """The metrics of volumes, slides or patients from the probabilities of their images."""
        lowest_U, highest_U = units.extremes(self.tested_Q)
        pure_U = lowest_U == highest_U
        mixed = int((~pure_U).sum())
        without = set(range(len(self.labelled.classes))) - set(lowest_U[pure_U].tolist())
        if without:
            names = ", ".join(f"'{self.labelled.classes[number]}'" for number in sorted(without))
            missing = f"no {units.name} has tested images of {names} alone"
            return UnitScores(int(pure_U.sum()), mixed, {}, missing)
        metrics = class_metrics(
            units.draws(self.draws, pure_U), lowest_U[pure_U], units.means(scores_QM)[pure_U]
        )
        return UnitScores(int(pure_U.sum()), mixed, metrics)

    def main_setting(self, task: str, metrics: Mapping[str, Any]) -> str:
        """The setting of a task that its verdict is about."""
        if task == "linear":
            return ALL
        wanted = MAIN_K if task == "knn" else MAIN_SHOTS
        numbers = [int(setting) for setting in metrics]
        small_enough = [number for number in numbers if number <= wanted]
        return str(max(small_enough, default=min(numbers)))

    def described(self, task: str) -> dict[str, Any]:
        """The JSON's entries on how a task was done."""
        if task == "knn":
            return {"temperature": TEMPERATURE, "pixels": self.pixel_form.get(task)}
        if task == "linear":
            return {
                "chosen_c": self.chosen,
                "validation": self.validation.how,
                "folds": len(self.validation.folds),
                "pixels": self.pixel_form.get(task),
            }
        return {"draws": REPEATS, "c_times_width": PENALTY_TIMES_WIDTH}

    def thin_classes(self) -> list[str]:
        """A sentence where a class has so few tested patients that intervals mislead."""
        labelled = self.labelled
        tested = {}
        for label in labelled.classes:
            rows = labelled.is_test & (labelled.labels == label)
            tested[label] = len(set(labelled.patients[rows]))
        few = [label for label, count in tested.items() if count < FEW_PATIENTS]
        if not few:
            return []
        units = "patients" if labelled.patients_known else "files"
        counts = ", ".join(f"'{label}' {tested[label]}" for label in few[:3])
        more = ""
        if len(few) > 3:
            more = f" and {len(few) - 3} more classes have as few"
        return [f"few tested {units} of a class ({counts}{more}): the intervals are too narrow"]

    def _best_pixels(self, task: str, pixels_ND: np.ndarray) -> np.ndarray:
        """The form of the pixels that does best on the validation images."""
        fitted = self.validation.fitted if task == "linear" else self.labelled.is_train
        form, best_ND = best_pixels(pixels_ND, self.validation, task, fitted, self._loss_of(task))
        self.pixel_form[task] = form
        return best_ND

    def _loss_of(self, task: str) -> Callable[[Sequence[np.ndarray]], float]:
        """How badly features, of each fold, do on the validation images: less is better."""
        folds = self.validation.folds
        if task == "linear":
            return lambda features: choose_penalty(features, self.classes_N, folds).loss
        return self._knn_loss

    def _knn_loss(self, features: Sequence[np.ndarray]) -> float:
        folds = self.validation.folds
        held = [
            knn_probabilities(
                features_ND[fold.fit],
                self.classes_N[fold.fit],
                features_ND[fold.choose],
                len(self.labelled.classes),
                k=MAIN_K,
            )
            for features_ND, fold in zip(features, folds, strict=True)
        ]
        true = np.concatenate([self.classes_N[fold.choose] for fold in folds])
        return 1 - balanced_accuracy(true, np.concatenate(held))

    def _knn(self, features_ND: np.ndarray) -> dict[str, np.ndarray]:
        labelled = self.labelled
        votes = knn_votes(
            features_ND[labelled.is_train],
            self.classes_N[labelled.is_train],
            features_ND[labelled.is_test],
            len(labelled.classes),
            self.ks,
        )
        return {str(k): probabilities for k, probabilities in votes.items()}

    def _linear(self, name: str, features_ND: np.ndarray) -> dict[str, np.ndarray]:
        probabilities, self.chosen[name] = linear_probabilities(
            features_ND, self.classes_N, self.validation, self.labelled.is_test
        )
        return {ALL: probabilities}

    def _few_shot(self, features_ND: np.ndarray) -> Metrics:
        standardised_ND = standardised(features_ND, self.labelled.is_train)
        found = {}
        for shots in self.shots:
            repeats = [self._shots(standardised_ND, shots, repeat) for repeat in range(REPEATS)]
            found[str(shots)] = self._mean(repeats)
        return found

    def _shots(self, standardised_ND: np.ndarray, shots: int, repeat: int) -> dict[str, Metric]:
        """The metrics after training on one draw of a few images a class."""
        labelled = self.labelled
        chosen = draw_shots(labelled, shots, repeat, self.seed)
        probabilities = few_shot_probabilities(
            standardised_ND, self.classes_N, chosen, labelled.is_test
        )
        return self._metrics(probabilities)

    def _mean(self, repeats: list[dict[str, Metric]]) -> dict[str, Metric]:
        """The mean of each metric over draws of images."""
        found = {}
        for name in repeats[0]:
            found[name] = mean_metric([metrics[name] for metrics in repeats], self.seed)
        return found

    def _metrics(self, probabilities_QC: np.ndarray) -> dict[str, Metric]:
        return class_metrics(self.draws, self.tested_Q, probabilities_QC)


def best_pixels(
    pixels_ND: np.ndarray,
    parts: Validation,
    task: str,
    fitted: np.ndarray,
    loss_of: Callable[[Sequence[np.ndarray]], float],
) -> tuple[str, np.ndarray]:
    """The form of the pixels with the least loss on validation images; as they are without any.

    Args:
        pixels_ND: of all images.
        parts: the folds that forms are compared on.
        task: ``knn`` or ``linear``.
        fitted: [N] bool, what the form that was chosen is made from.
        loss_of: a function of the features in each fold.

    Returns: its name, and the pixels in it.
    """
    form, size = CENTERED, 0
    if parts.folds:
        forms = forms_in_folds(pixels_ND, parts.folds, task)
        form = min(forms, key=lambda name: loss_of(forms[name]))
        if form.endswith("components"):
            size = forms[form][0].shape[1]
    sizes = [size] if size else []
    return form, pixel_forms(pixels_ND, fitted, sizes, neighbours=task == "knn")[form]


def forms_in_folds(
    pixels_ND: np.ndarray, folds: Sequence[Fold], task: str
) -> dict[str, list[np.ndarray]]:
    """Every form of the pixels, in each fold made from what is fitted there; pixels come first."""
    fewest = min(int(fold.fit.sum()) for fold in folds)
    allowed = component_sizes(fewest, PIXEL_COMPONENTS[task])
    by_fold = [
        pixel_forms(pixels_ND, fold.fit, allowed, neighbours=task == "knn") for fold in folds
    ]
    return {name: [forms[name] for forms in by_fold] for name in by_fold[0]}


def class_metrics(
    draws: Draws, true_Q: np.ndarray, probabilities_QC: np.ndarray
) -> dict[str, Metric]:
    """Balanced accuracy and AUROC.

    Args:
        draws: of the patients.
        true_Q: the classes, 0 .. C - 1, each of them there.
        probabilities_QC: of each class.
    """
    predicted_Q = probabilities_QC.argmax(axis=1)
    class_count = probabilities_QC.shape[1]
    return {
        "balanced_accuracy": Metric(
            balanced_accuracy(true_Q, probabilities_QC),
            balanced_accuracy_of_draws(draws, true_Q, predicted_Q, class_count),
        ),
        "auroc": Metric(
            macro_auroc(true_Q, probabilities_QC),
            macro_auroc_of_draws(draws, true_Q, probabilities_QC),
        ),
    }
