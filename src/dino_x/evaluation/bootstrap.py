"""Intervals: the same metrics on patients drawn again, many times.

Images of one patient are alike, so the patient is what is drawn, with all its images. Drawing a
patient twice is giving its images a weight of two, so a metric on R draws is a few products of
matrices with the weights, not R passes over the images.

Q tested images, P patients, R draws, C classes.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 (data that are not
independent) and 13.3 (percentile intervals).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dino_x.randomness import generator

DRAWS = 1000
CONFIDENCE = 0.95
CHUNK_ELEMENTS = 1 << 23  # weights of images held at once: 64 MB in float64


@dataclass(frozen=True)
class Draws:
    """Which patients were drawn how often.

    Attributes:
        counts_RP: times each patient is in each draw, float64 whole numbers; rows sum to P.
        patient_Q: the patient of each tested image, 0 .. P - 1.
    """

    counts_RP: np.ndarray
    patient_Q: np.ndarray

    def totals(self, values_QM: np.ndarray) -> np.ndarray:
        """Sums of the values over the images of each draw, [R, M]."""
        by_patient_PM = np.zeros((self.counts_RP.shape[1], values_QM.shape[1]))
        np.add.at(by_patient_PM, self.patient_Q, values_QM)
        return self.counts_RP @ by_patient_PM


def draw_patients(patients_Q: np.ndarray, seed: int, draws: int = DRAWS) -> Draws:
    """As many patients as there are, drawn with replacement, ``draws`` times.

    Args:
        patients_Q: the name of each image's patient; what they are called does not matter, only
            the order in which they first appear.
        seed: the same seed gives the same draws.
        draws: R.
    """
    order: dict[str, int] = {}
    patient_Q = np.array([order.setdefault(name, len(order)) for name in patients_Q.tolist()])
    count = len(order)
    counts_RP = generator(seed, 0, "bootstrap patients").multinomial(
        count, np.full(count, 1 / count), size=draws
    )
    return Draws(counts_RP.astype(np.float64), patient_Q)


@dataclass(frozen=True)
class Metric:
    """A metric on all patients, and on each draw of them.

    Attributes:
        value: the metric on all patients.
        draws_R: the metric on each draw; NaN where it is not defined.
    """

    value: float
    draws_R: np.ndarray

    def __sub__(self, other: "Metric") -> "Metric":
        """The paired difference: draw by draw, the same patients on both sides."""
        return Metric(self.value - other.value, self.draws_R - other.draws_R)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The percentile interval; NaN where no draw is defined."""
        defined = self.draws_R[np.isfinite(self.draws_R)]
        if not len(defined):
            return float("nan"), float("nan")
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(defined, [tail, 100 - tail])
        return float(low), float(high)

    def as_json(self) -> dict[str, float]:
        """The entries ``value``, ``low`` and ``high`` of the JSON."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high}


def mean_of_draws(draws: Draws, values_Q: np.ndarray) -> np.ndarray:
    """The mean of a value of each image, e.g. its Dice, over the images of each draw, [R]."""
    totals_R2 = draws.totals(np.stack([values_Q, np.ones(len(values_Q))], axis=1))
    return totals_R2[:, 0] / totals_R2[:, 1]


def balanced_accuracy_of_draws(
    draws: Draws, classes_Q: np.ndarray, predicted_Q: np.ndarray, class_count: int
) -> np.ndarray:
    """The balanced accuracy on each draw, [R].

    The mean is over the classes that the draw has, as in scikit-learn's
    ``balanced_accuracy_score``.

    Args:
        draws: of the patients.
        classes_Q: the true classes, 0 .. C - 1.
        predicted_Q: the predicted ones.
        class_count: C.
    """
    is_class_QC = np.eye(class_count)[classes_Q]
    is_right_QC = is_class_QC * (classes_Q == predicted_Q)[:, None]
    right_RC, all_RC = np.split(draws.totals(np.hstack([is_right_QC, is_class_QC])), 2, axis=1)
    there_RC = all_RC > 0
    share_RC = np.divide(right_RC, all_RC, out=np.zeros_like(right_RC), where=there_RC)
    with np.errstate(invalid="ignore"):  # NaN for a draw without any image
        return share_RC.sum(axis=1) / there_RC.sum(axis=1)


def macro_auroc_of_draws(draws: Draws, classes_Q: np.ndarray, scores_QC: np.ndarray) -> np.ndarray:
    """The area under the ROC curve, one class against the rest, mean over classes, [R].

    The mean is over the classes that the draw has beside others; NaN where it has one class only.

    Args:
        draws: of the patients.
        classes_Q: the true classes, 0 .. C - 1.
        scores_QC: of each class; for two classes the second column counts.

    Source: Hanley and McNeil 1982: the share of pairs of a positive and a negative image in which
    the positive one has the higher score, ties counting half; here pairs have weights.
    """
    class_count = scores_QC.shape[1]
    classes = [1] if class_count == 2 else list(range(class_count))
    areas_RC = np.stack([_auroc(draws, classes_Q == c, scores_QC[:, c]) for c in classes], axis=1)
    defined_RC = np.isfinite(areas_RC)
    with np.errstate(invalid="ignore"):
        return np.where(defined_RC, areas_RC, 0).sum(axis=1) / defined_RC.sum(axis=1)


def average_precision_of_draws(
    draws: Draws, positive_Q: np.ndarray, scores_Q: np.ndarray
) -> np.ndarray:
    """The average precision on each draw, [R]: the mean precision over steps of recall.

    It is scikit-learn's ``average_precision_score`` with the draw's weights; NaN where a draw has
    no positive image.

    Args:
        draws: of the patients.
        positive_Q: whether each image is positive, 0 or 1.
        scores_Q: larger for images that are more likely positive.
    """
    order = np.argsort(-scores_Q, kind="stable")
    scores, positive, patient = scores_Q[order], positive_Q[order], draws.patient_Q[order]
    ends = np.flatnonzero(np.concatenate([scores[1:] != scores[:-1], [True]]))  # of equal scores
    found = []
    step = max(1, CHUNK_ELEMENTS // len(scores_Q))
    for first in range(0, len(draws.counts_RP), step):
        weights_RQ = draws.counts_RP[first : first + step, patient]
        positives_RT = np.cumsum(weights_RQ * positive, axis=1)[:, ends]
        all_RT = np.cumsum(weights_RQ, axis=1)[:, ends]
        gained_RT = np.diff(positives_RT, axis=1, prepend=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision_RT = np.where(all_RT > 0, positives_RT / all_RT, 0)
            found.append((precision_RT * gained_RT).sum(axis=1) / positives_RT[:, -1])
    return np.concatenate(found)


def _auroc(draws: Draws, positive_Q: np.ndarray, scores_Q: np.ndarray) -> np.ndarray:
    order = np.argsort(scores_Q, kind="stable")
    scores, positive, patient = scores_Q[order], positive_Q[order], draws.patient_Q[order]
    starts = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))  # of equal scores
    areas = []
    step = max(1, CHUNK_ELEMENTS // len(scores_Q))
    for first in range(0, len(draws.counts_RP), step):
        weights_RQ = draws.counts_RP[first : first + step, patient]
        positives_RT = np.add.reduceat(weights_RQ * positive, starts, axis=1)
        negatives_RT = np.add.reduceat(weights_RQ * ~positive, starts, axis=1)
        below_RT = np.cumsum(negatives_RT, axis=1) - negatives_RT / 2
        pairs_R = positives_RT.sum(axis=1) * negatives_RT.sum(axis=1)
        with np.errstate(invalid="ignore"):
            areas.append((positives_RT * below_RT).sum(axis=1) / pairs_R)
    return np.concatenate(areas)
