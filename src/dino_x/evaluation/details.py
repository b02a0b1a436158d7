"""What one figure hides: which class is taken for which, and each class by itself.

Q tested images, C classes, L labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from dino_x.evaluation.bootstrap import Draws, Metric, macro_auroc_of_draws

ROC_POINTS = 101  # of a curve; more are thinned
MOST_CLASSES = 50  # of more there is no confusion matrix: nobody reads it


def details_of_classes(
    draws: Draws, true_Q: np.ndarray, probabilities_QC: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """The confusion matrix, and a row and a ROC curve a class.

    Args:
        draws: of the patients.
        true_Q: the class of each image, 0 .. C - 1.
        probabilities_QC: of each class; the largest is the answer.
        names: of the C classes.

    Returns: ``confusion`` (images by true class, rows, and answer, columns; None for more than
        ``MOST_CLASSES``), ``classes`` (by name: ``images``, and ``recall``, ``precision``,
        ``specificity`` and ``auroc`` with intervals; ``precision`` is None for a class that is
        never answered) and ``roc`` (by name, ``false_positive_rate`` and ``true_positive_rate``).
    """
    answer_Q = probabilities_QC.argmax(axis=1)
    confusion = None
    if len(names) <= MOST_CLASSES:
        counts_CC = confusion_matrix(true_Q, answer_Q, labels=range(len(names)))
        confusion = counts_CC.tolist()
    classes, curves = {}, {}
    for number, name in enumerate(names):
        is_true_Q, is_answer_Q = true_Q == number, answer_Q == number
        score_Q = probabilities_QC[:, number]
        classes[name] = {
            "images": int(is_true_Q.sum()),
            "recall": share(draws, is_true_Q & is_answer_Q, is_true_Q),
            "precision": share(draws, is_true_Q & is_answer_Q, is_answer_Q),
            "specificity": share(draws, ~is_true_Q & ~is_answer_Q, ~is_true_Q),
            "auroc": auroc(draws, is_true_Q, score_Q).as_json(),
        }
        curves[name] = roc(is_true_Q, score_Q)
    return {"confusion": confusion, "classes": classes, "roc": curves}


def details_of_labels(
    true_QL: np.ndarray, scores_QL: np.ndarray, metrics: Sequence[dict[str, Metric]],
    names: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """A row and a ROC curve for each of several labels; a threshold, and so an answer, is not set.

    Args:
        true_QL: whether each label is there.
        scores_QL: larger for labels that are more likely there.
        metrics: of each label.
        names: of the L labels.
    """
    classes, curves = {}, {}
    for number, name in enumerate(names):
        shown = {key: value.as_json() for key, value in metrics[number].items()}
        classes[name] = {"images": int(true_QL[:, number].sum()), **shown}
        curves[name] = roc(true_QL[:, number] > 0, scores_QL[:, number])
    return {"confusion": None, "classes": classes, "roc": curves}


def share(draws: Draws, part_Q: np.ndarray, whole_Q: np.ndarray) -> dict[str, float] | None:
    """The share of some images in others with its interval; None for a share of nothing."""
    if not whole_Q.any():
        return None
    part_R, whole_R = draws.totals(np.stack([part_Q, whole_Q], axis=1).astype(float)).T
    with np.errstate(invalid="ignore"):
        return Metric(float(part_Q.sum() / whole_Q.sum()), part_R / whole_R).as_json()


def auroc(draws: Draws, positive_Q: np.ndarray, score_Q: np.ndarray) -> Metric:
    """The area under the ROC curve of one class against the rest."""
    both_Q2 = np.stack([-score_Q, score_Q], axis=1)
    drawn_R = macro_auroc_of_draws(draws, positive_Q.astype(int), both_Q2)
    return Metric(float(roc_auc_score(positive_Q, score_Q)), drawn_R)


def roc(positive_Q: np.ndarray, score_Q: np.ndarray) -> dict[str, list[float]]:
    """The ROC curve, from (0, 0) to (1, 1), of at most ``ROC_POINTS`` of its corners.

    >>> roc(np.array([False, True, True]), np.array([0.1, 0.4, 0.8]))
    {'false_positive_rate': [0.0, 0.0, 0.0, 1.0], 'true_positive_rate': [0.0, 0.5, 1.0, 1.0]}
    """
    false_T, true_T, _ = roc_curve(positive_Q, score_Q, drop_intermediate=False)
    # Evenly along the curve: each step to the right or up is as long as its part of the whole.
    length_T = false_T + true_T
    wanted = np.searchsorted(length_T, np.linspace(0, length_T[-1], ROC_POINTS))
    corners = np.unique(wanted)
    if len(length_T) <= ROC_POINTS:
        corners = np.arange(len(length_T))
    return {
        "false_positive_rate": [round(float(rate), 4) for rate in false_T[corners]],
        "true_positive_rate": [round(float(rate), 4) for rate in true_T[corners]],
    }
