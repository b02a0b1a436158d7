"""The JSON of an evaluation: counts and metrics, and neither patients nor files."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dino_x.data.index.labels import Labelled
from dino_x.evaluation.classify import Metrics
from dino_x.evaluation.masks import Masked


def results(metrics: dict[str, dict[str, Metrics]]) -> dict[str, Any]:
    """The results hold ``value``, ``low`` and ``high`` by name, task, setting and metric."""
    found: dict[str, Any] = {}
    for name, tasks in metrics.items():
        found[name] = {task: _of_task(of_task) for task, of_task in tasks.items()}
    return found


def _of_task(of_task: Metrics) -> dict[str, dict[str, dict[str, float]]]:
    """The results of one task, by setting and metric."""
    found = {}
    for setting, of_setting in of_task.items():
        found[setting] = {name: metric.as_json() for name, metric in of_setting.items()}
    return found


def counts(labelled: Labelled) -> dict[str, dict[str, int]]:
    """The number of images by split and class; by split alone where there are no classes."""
    found = {}
    for side, rows in _sides(labelled).items():
        if labelled.targets is not None:
            found[side] = {"images": int(rows.sum())}
            continue
        images = Counter(labelled.labels[rows].tolist())
        found[side] = dict(sorted(images.items()))
    return found


def targets(labelled: Labelled) -> dict[str, Any] | None:
    """The kind of the labels, their names, and how many have each by split; None for classes."""
    if labelled.targets is None:
        return None
    return {
        "kind": labelled.targets.kind,
        "names": list(labelled.targets.names),
        "counts": {side: labelled.targets.counts(rows) for side, rows in _sides(labelled).items()},
    }


def patients(labelled: Labelled) -> dict[str, int] | None:
    """The number of patients by split; None where they are not known for all images."""
    if not labelled.patients_known:
        return None
    return {side: len(set(labelled.patients[rows])) for side, rows in _sides(labelled).items()}


def masks(masked: Masked) -> dict[str, Any]:
    """Images and patients by split; those to choose on are val where they are given, else train."""
    is_test, is_val = masked.side == "test", masked.side == "choose"
    sides = {"train": ~is_test & ~is_val, "val": is_val}
    if masked.validation != "given":
        sides = {"train": ~is_test}
    sides[masked.tested] = is_test
    known_patients = None
    if masked.patients_known:
        known_patients = {side: len(set(masked.patients[rows])) for side, rows in sides.items()}
    return {
        "images": {side: int(rows.sum()) for side, rows in sides.items()},
        "patients": known_patients,
        "classes": masked.names,
        "split_by": masked.split_by,
        "tested_split": masked.tested,
    }


def file_name(path: str | Path | None) -> str | None:
    """The name alone: folders may be called after patients."""
    return None if path is None else Path(path).name


def _sides(labelled: Labelled) -> dict[str, np.ndarray]:
    sides = {"train": labelled.is_train}
    if labelled.is_val.any():
        sides["val"] = labelled.is_val
    return sides | {labelled.tested: labelled.is_test}
