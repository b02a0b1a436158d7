"""Few labels: a linear probe on 1, 5, 10 or 50 images a class, each of another patient.

N images, D features, C classes, Q tested images.
"""

from collections import defaultdict

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dino_x.data.index.labels import Labelled
from dino_x.evaluation.bootstrap import Metric
from dino_x.randomness import generator

SHOTS = (1, 5, 10, 50)
REPEATS = 20
# C x D. The classes of few images are always separable, so the penalty decides how the cut lies,
# and there is nothing to choose it on. On chest films 10 is within 0.03 of the best of 0.1 to 1000,
# for the features of trained and untrained networks and for pixels.
PENALTY_TIMES_WIDTH = 10.0


def possible_shots(
    labelled: Labelled, shots: tuple[int, ...] = SHOTS
) -> tuple[list[int], list[str]]:
    """The shots that every class has patients for, and a sentence where some are left out."""
    train = labelled.is_train
    patients = {}
    for label in labelled.classes:
        rows = train & (labelled.labels == label)
        patients[label] = len(set(labelled.patients[rows]))
    fewest = min(patients, key=lambda label: patients[label])
    possible = [count for count in shots if count <= patients[fewest]]
    left_out = [str(count) for count in shots if count > patients[fewest]]
    if not left_out:
        return possible, []
    units = "patients" if labelled.patients_known else "files"
    return possible, [
        f"few-shot with {' and '.join(left_out)} a class is left out: '{fewest}' has"
        f" {patients[fewest]} {units} in train"
    ]


def draw_shots(labelled: Labelled, shots: int, repeat: int, seed: int) -> np.ndarray:
    """Rows of ``shots`` training images of each class, of as many patients, [C * shots].

    Args:
        labelled: the images; a patient is a file where patients are not known.
        shots: at most the number of patients of the rarest class in train.
        repeat: number of the draw; each is another one.
        seed: of the draws.
    """
    rng = generator(seed, repeat, f"few-shot {shots}")
    chosen = []
    for label in labelled.classes:
        images_of: dict[str, list[int]] = defaultdict(list)
        for row in np.flatnonzero(labelled.is_train & (labelled.labels == label)).tolist():
            images_of[labelled.patients[row]].append(row)
        patients = list(images_of)
        for which in rng.choice(len(patients), shots, replace=False):
            chosen.append(int(rng.choice(images_of[patients[which]])))
    return np.array(chosen)


def standardised(features_ND: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Features less their mean, by their standard deviation, over all images of train.

    That takes no labels, and images without one are not what is scarce.
    """
    scaler = StandardScaler().fit(features_ND[train].astype(np.float64))
    return scaler.transform(features_ND.astype(np.float64))


def few_shot_probabilities(
    standardised_ND: np.ndarray, classes_N: np.ndarray, shots_S: np.ndarray, tested: np.ndarray
) -> np.ndarray:
    """Logistic regression on the images ``shots_S``, for the Q images ``tested``: [Q, C]."""
    penalty = PENALTY_TIMES_WIDTH / standardised_ND.shape[1]
    classifier = LogisticRegression(C=penalty, max_iter=500)
    classifier.fit(standardised_ND[shots_S], classes_N[shots_S])
    return classifier.predict_proba(standardised_ND[tested])


def mean_metric(repeats: list[Metric], seed: int) -> Metric:
    """The mean over draws of shots, with an interval over these draws and over the patients.

    Each bootstrap draw also draws the repeats again, with replacement, so that the interval says
    how far both the choice of the few images and that of the tested patients may move the mean.
    """
    count = len(repeats)
    draws_R = repeats[0].draws_R
    weights_RT = generator(seed, 0, "bootstrap few-shot").multinomial(
        count, np.full(count, 1 / count), size=len(draws_R)
    )
    values_RT = np.stack([metric.draws_R for metric in repeats], axis=1)
    return Metric(
        float(np.mean([metric.value for metric in repeats])),
        (values_RT * weights_RT).sum(axis=1) / count,
    )
