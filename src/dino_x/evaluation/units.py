"""Scores of whole volumes, slides and patients, from the scores of their images.

What a reader asks is seldom about one slice. The rule is the plainest one: the score of a unit is
the mean of the scores of its tested images. Its truth is their class, or, with several labels,
every label that any of them has, or the mean of their numbers. Units whose images are of different
classes have no truth; they are left out and counted.

Q tested images, U units, M values of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dino_x.data.index.labels import Labelled
from dino_x.evaluation.bootstrap import Draws, Metric
from dino_x.evaluation.verdict import verdict

VOLUME, SLIDE, PATIENT = "volume", "slide", "patient"


@dataclass(frozen=True)
class Units:
    """Which tested images belong together.

    Attributes:
        name: volume, slide or patient.
        unit_Q: the number of the unit of each tested image, 0 .. U - 1; every number is there.
    """

    name: str
    unit_Q: np.ndarray

    @property
    def count(self) -> int:
        """The number of units, U."""
        return int(self.unit_Q.max()) + 1

    def means(self, values_QM: np.ndarray) -> np.ndarray:
        """The mean of each value over the images of each unit, float64 [U, M].

        >>> Units("volume", np.array([0, 0, 1])).means(np.array([[1.0], [3.0], [7.0]])).tolist()
        [[2.0], [7.0]]
        """
        sums_UM = np.zeros((self.count, values_QM.shape[1]))
        np.add.at(sums_UM, self.unit_Q, values_QM)
        return sums_UM / np.bincount(self.unit_Q)[:, None]

    def extremes(self, values_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest and the largest value among the images of each unit, [U] each."""
        low_U = np.full(self.count, values_Q.max())
        high_U = np.full(self.count, values_Q.min())
        np.minimum.at(low_U, self.unit_Q, values_Q)
        np.maximum.at(high_U, self.unit_Q, values_Q)
        return low_U, high_U

    def draws(self, draws: Draws, kept_U: np.ndarray) -> Draws:
        """The draws of patients as draws of the units ``kept_U`` ([U] bool).

        A unit goes with the patient of its first image.
        """
        _, first_U = np.unique(self.unit_Q, return_index=True)
        return Draws(draws.counts_RP, draws.patient_Q[first_U][kept_U])


@dataclass(frozen=True)
class UnitScores:
    """The metrics of units in one task, or why there are none.

    Attributes:
        count: units that were scored.
        mixed: units that were left out, as their images are of different classes.
        metrics: by name; {} where ``missing`` says why there are none.
        missing: a sentence.
    """

    count: int
    mixed: int
    metrics: dict[str, Metric]
    missing: str = ""


class Scorer(Protocol):
    """What scores units; see ``Classification`` and ``OtherTargets``.

    Attributes:
        scores: of the tested images in the setting that a verdict is about, by task and name.
    """

    scores: dict[str, dict[str, np.ndarray]]

    def of_units(self, units: Units, scores_QM: np.ndarray) -> UnitScores:
        """The metrics of units, from the scores of the images."""


def units_of(labelled: Labelled) -> list[Units]:
    """The kinds of units that some tested images share, smallest first.

    A kind that puts the same images together as another one, such as patients of one volume each,
    is given once: as patients, unless a column of the labels says slide.
    """
    named = dict(labelled.units)
    if labelled.patients_known:
        named.setdefault(PATIENT, labelled.patients)
    found: dict[str, Units] = {}
    for name in (SLIDE, PATIENT, VOLUME):
        if name not in named:
            continue
        unit_Q = _numbered(named[name][labelled.is_test])
        shared = len(unit_Q) > unit_Q.max() + 1
        known = any(np.array_equal(unit_Q, units.unit_Q) for units in found.values())
        if shared and not known:
            found[name] = Units(name, unit_Q)
    return [found[name] for name in (VOLUME, SLIDE, PATIENT) if name in found]


def score_units(
    scorer: Scorer, all_units: list[Units], settings: Mapping[str, str], metric: str
) -> tuple[dict[str, Any], list[str]]:
    """The entry ``units`` of the JSON, and sentences about units that cannot be scored.

    Args:
        scorer: has scored the images.
        all_units: see ``units_of``.
        settings: of each task, the one that its verdict is about.
        metric: the name of the metric that verdicts are about.

    Returns: by the name of the unit, ``count``, ``mixed``, ``results`` (by name, task, setting and
        metric, as for images) and ``verdicts`` (by task).
    """
    found: dict[str, Any] = {}
    missing: list[str] = []
    for units in all_units:
        tasks = {
            task: {name: scorer.of_units(units, scores) for name, scores in of_task.items()}
            for task, of_task in scorer.scores.items()
        }
        first = next((score for of_task in tasks.values() for score in of_task.values()), None)
        if first is None:
            continue
        if first.missing:
            missing.append(f"no scores by {units.name}: {first.missing}")
            continue
        results: dict[str, Any] = {}
        verdicts: dict[str, Any] = {}
        for task, of_task in tasks.items():
            setting = settings[task]
            for name, score in of_task.items():
                shown = {key: value.as_json() for key, value in score.metrics.items()}
                results.setdefault(name, {})[task] = {setting: shown}
            metrics = {name: score.metrics[metric] for name, score in of_task.items()}
            verdicts[task] = verdict(metrics, setting, metric)
        found[units.name] = {
            "count": first.count,
            "mixed": first.mixed,
            "results": results,
            "verdicts": verdicts,
        }
    return found, missing


def _numbered(names_Q: np.ndarray) -> np.ndarray:
    """Numbers 0, 1, ... in the order in which names first appear."""
    order: dict[str, int] = {}
    return np.array([order.setdefault(name, len(order)) for name in names_Q.tolist()])
