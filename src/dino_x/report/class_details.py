"""Each class by itself on the page: figures, the confusion matrix, ROC curves, whole units."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dino_x.evaluation.wording import METRIC_TITLES, TASK_TITLES
from dino_x.report.curves import DrawnChart
from dino_x.report.plots import STYLES, Chart, PlotLine, draw, sample, three_digits

COLUMNS = ("recall", "precision", "specificity", "auroc", "average_precision")
MOST_IN_MATRIX = 12  # classes; more do not fit on a page


@dataclass(frozen=True)
class ClassRow:
    """A class: its name, how many images, and its figures with intervals as text."""

    name: str
    images: str
    figures: list[str]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix: names of classes, and by true class (count, share of its images)."""

    names: list[str]
    rows: list[list[tuple[int, float]]]


@dataclass(frozen=True)
class ClassDetails:
    """The details of one task.

    Attributes:
        task: its name for people.
        columns: the titles of the figures.
        rows: of the classes.
        matrix: None where there are too many classes, or several labels an image.
        roc: the ROC curves.
    """

    task: str
    columns: list[str]
    rows: list[ClassRow]
    matrix: Matrix | None
    roc: DrawnChart


@dataclass(frozen=True)
class UnitTable:
    """The model's figure by image, volume, slide and patient."""

    columns: list[str]
    rows: list[tuple[str, str, list[str]]]
    notes: list[str]


def class_details(evaluation: dict[str, Any]) -> list[ClassDetails]:
    """The details of each task of an evaluation; none in files of older versions."""
    found = evaluation.get("details")
    if not isinstance(found, dict):
        return []
    tasks = sorted((task for task in found if found[task]), key=lambda task: task != "linear")
    return [details_of(task, found[task]) for task in tasks]


def details_of(task: str, detail: dict[str, Any]) -> ClassDetails:
    """One task."""
    classes = detail["classes"]
    first = next(iter(classes.values()))
    keys = [key for key in COLUMNS if key in first]
    rows = [
        ClassRow(name, f"{row['images']:,}", [figure(row.get(key)) for key in keys])
        for name, row in classes.items()
    ]
    return ClassDetails(
        TASK_TITLES.get(task, task),
        [METRIC_TITLES[key] for key in keys],
        rows,
        matrix_of(list(classes), detail["confusion"]),
        roc_chart(task, detail),
    )


def figure(metric: dict[str, float] | None) -> str:
    """``0.877 (0.851 to 0.901)``; in words for a class that is never answered."""
    if metric is None:
        return "never answered"
    if metric.get("low") is None or metric.get("high") is None:
        return f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def matrix_of(names: list[str], confusion: list[list[int]] | None) -> Matrix | None:
    """The confusion matrix, if it fits on the page."""
    if confusion is None or len(names) > MOST_IN_MATRIX:
        return None
    rows = []
    for counts in confusion:
        whole = max(sum(counts), 1)
        rows.append([(count, count / whole) for count in counts])
    return Matrix(names, rows)


def roc_chart(task: str, detail: dict[str, Any]) -> DrawnChart:
    """The ROC curves: of two classes one, which is the other's mirrored; of many the worst."""
    classes, curves = detail["classes"], detail["roc"]
    names = sorted(classes, key=lambda name: classes[name]["auroc"]["value"])
    if detail["confusion"] is not None and len(names) == 2:
        names = list(classes)[1:]
    shown = names[:STYLES]
    lines = [
        PlotLine(
            name,
            np.array(curves[name]["false_positive_rate"]),
            np.array(curves[name]["true_positive_rate"]),
        )
        for name in shown
    ]
    key, areas = f"roc-{task}", [classes[name]["auroc"]["value"] for name in shown]
    told = ", ".join(f"{n} {three_digits(area)}" for n, area in zip(shown, areas, strict=True))
    of_all = (
        f"the {len(shown)} of {len(names)} classes with the lowest"
        if len(names) > len(shown)
        else "AUROC"
    )
    title = f"ROC, {TASK_TITLES.get(task, task)}"
    chart = Chart(
        title, lines, bounds=(0, 1), x_label="false positive rate", described_by=f"{key}-words",
        logarithmic=False, unit="true positive rate",
    )  # fmt: skip
    meaning = "Up and to the left is better; a straight line from corner to corner is guessing."
    return DrawnChart(
        key=key,
        title=title,
        unit="share of a class's images that are found, against false alarms among the others",
        svg=draw(chart),
        legend=[(sample(style), name) for style, name in enumerate(shown)],
        words=f"{of_all[0].upper()}{of_all[1:]}: {told}.",
        meaning=meaning,
        numbers=[],
    )


def unit_table(evaluation: dict[str, Any]) -> UnitTable | None:
    """The model's figures by unit; None where images are all there is."""
    units = evaluation.get("units")
    if not isinstance(units, dict) or not units:
        return None
    verdicts = evaluation["verdicts"]
    tasks = list(next(iter(units.values()))["verdicts"])
    metrics = [verdicts[task]["metric"] for task in tasks]
    columns = [
        f"{TASK_TITLES.get(task, task)}, {METRIC_TITLES.get(metric, metric)}"
        for task, metric in zip(tasks, metrics, strict=True)
    ]
    counts = evaluation["counts"][evaluation["settings"]["tested_split"]]
    found = [("image", sum(counts.values()), evaluation["results"])]
    found += [(name, unit["count"], unit["results"]) for name, unit in units.items()]
    rows = []
    for name, count, results in found:
        figures = []
        for task in tasks:
            setting, metric = verdicts[task]["setting"], verdicts[task]["metric"]
            figures.append(figure(results["model"][task][setting][metric]))
        rows.append((name, f"{count:,}", figures))
    notes = [
        f"{unit['mixed']:,} {name}s have images of different classes and are left out."
        for name, unit in units.items()
        if unit["mixed"]
    ]
    return UnitTable(columns, rows, notes)
