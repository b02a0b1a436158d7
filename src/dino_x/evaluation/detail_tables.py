"""The details of an evaluation for people: each class, which is taken for which, whole units."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_x.evaluation.wording import METRIC_TITLES, TASK_TITLES, with_interval

MOST_ROWS = 12  # of classes; of more the ones with the lowest AUROC
MOST_COLUMNS = 6  # of a confusion matrix on the screen
COLUMNS = ("recall", "precision", "auroc", "average_precision")
PLURALS = {"image": "images", "volume": "volumes", "slide": "slides", "patient": "patients"}


def print_details(result: dict[str, Any], console: Console) -> None:
    """Print each class by itself, the confusion matrix if it is small, and scores of units.

    Of the tasks, the linear probe is shown if there is one. The JSON has all.
    """
    details = result.get("details") or {}
    shown = [task for task in ("linear", "knn") if details.get(task)]
    if shown:
        task = shown[0]
        console.print()
        console.print(Text(f"Each class by the model ({TASK_TITLES[task]})", style="bold"))
        console.print(class_table(details[task]))
        confusion = details[task]["confusion"]
        if confusion and len(confusion) <= MOST_COLUMNS:
            console.print(confusion_table(list(details[task]["classes"]), confusion))
    if result.get("units"):
        console.print()
        console.print(Text("The model by unit: mean of the scores of its images", style="bold"))
        console.print(unit_table(result))
        for name, unit in result["units"].items():
            if unit["mixed"]:
                what = f"{unit['mixed']:,} {PLURALS[name]} of images of different classes"
                console.print(Text(f"Left out: {what}."))


def class_table(detail: dict[str, Any]) -> Table:
    """A row a class: how many images, and its figures with intervals."""
    classes = detail["classes"]
    names = sorted(classes, key=lambda name: classes[name]["auroc"]["value"])[:MOST_ROWS]
    if len(names) == len(classes):
        names = list(classes)
    columns = [name for name in COLUMNS if name in classes[names[0]]]
    table = _table("class", "images", *(METRIC_TITLES[name] for name in columns))
    for name in names:
        row = classes[name]
        cells = [with_interval(row[key]) if row[key] else "never answered" for key in columns]
        table.add_row(Text(name), f"{row['images']:,}", *cells)
    if len(names) < len(classes):
        table.caption = f"the {len(names)} of {len(classes)} with the lowest AUROC"
    return table


def confusion_table(names: list[str], confusion: list[list[int]]) -> Table:
    """Images by their class, rows, and by the answer, columns."""
    table = _table("class", *(f"taken for {name}" for name in names))
    for name, counts in zip(names, confusion, strict=True):
        table.add_row(Text(name), *(f"{count:,}" for count in counts))
    return table


def unit_table(result: dict[str, Any]) -> Table:
    """A row a kind of unit, images first: how many were tested, and the figure of each task."""
    tasks = list(next(iter(result["units"].values()))["verdicts"])
    about = {task: result["verdicts"][task] for task in tasks}
    titles = [f"{TASK_TITLES[task]}, {METRIC_TITLES[about[task]['metric']]}" for task in tasks]
    table = _table("by", "tested", *titles)
    tested = result["counts"][result["settings"]["tested_split"]]
    found = {"image": (sum(tested.values()), result["results"])} | {
        name: (unit["count"], unit["results"]) for name, unit in result["units"].items()
    }
    for name, (count, results) in found.items():
        cells = [
            with_interval(results["model"][task][about[task]["setting"]][about[task]["metric"]])
            for task in tasks
        ]
        table.add_row(name, f"{count:,}", *cells)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for title in others:
        table.add_column(Text(title), justify="right")
    return table
