"""The evaluation for people: a table for each task, one sentence below each."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_x.evaluation.detail_tables import print_details
from dino_x.evaluation.seen import is_marked
from dino_x.evaluation.verdict import title
from dino_x.evaluation.wording import METRIC_TITLES, plain, with_interval

OTHER_METRIC = {"balanced_accuracy": "auroc", "auroc": "average_precision", "r2": "mae"}
NAME_WIDTH = 20
HOW = {"given": "given", "patient": "made by patient", "image": "made by file"}


def print_table(result: dict[str, Any], console: Console) -> None:
    """Print the data, a table and a sentence for each task, the warnings, and what it is worth."""
    settings = result["settings"]
    if result["counts"]:
        print_counts(result, console)
    if result["masks"]:
        print_masks(result["masks"], console)
    for task, finding in result["verdicts"].items():
        heading, table = TABLES[task](result, finding)
        console.print()
        console.print(Text(heading, style="bold"))
        console.print(table)
        console.print(Text(f"In {METRIC_TITLES[finding['metric']]} {finding['sentence']}."))
    print_details(result, console)
    console.print()
    console.print(
        f"In brackets: {settings['confidence']:.0%} intervals from"
        f" {settings['bootstrap_draws']:,} draws of the tested patients.",
        style="dim", highlight=False,
    )  # fmt: skip
    if result["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result["left_out"].items())
        console.print(Text(f"Left out: {reasons}."))
    if any(is_marked(result, name) for name in result["results"]):
        console.print("* was trained on some of the tested images", style="yellow")
    for warning in result["warnings"]:
        console.print(Text(f"Warning: {warning}."), style="yellow")
    if "worth" in result:
        console.print()
        console.print(Text(result["worth"]["sentence"], style="bold"))


def print_counts(result: dict[str, Any], console: Console) -> None:
    """Print the number of images by split and class."""
    counts, patients = result["counts"], result["patients"]
    targets = result.get("targets")
    what = f"{len(counts['train'])} classes"
    if targets is not None:
        what = f"{len(targets['names'])} labels" if targets["kind"] == "several" else "Numbers"
    console.print(f"{what}, split {HOW[result['settings']['split_by']]}:", highlight=False)
    for side, images in counts.items():
        whose = f" of {patients[side]:,} patients" if patients else ""
        named = images if targets is None else targets["counts"][side]
        classes = ", ".join(f"{count:,} {label}" for label, count in named.items())
        if targets is not None and targets["kind"] == "numbers":
            classes = f"'{targets['names'][0]}'"
        console.print(Text(f"  {side:<5} {sum(images.values()):,} images{whose}: {classes}"))


def print_masks(masks: dict[str, Any], console: Console) -> None:
    """Print the number of images with a mask by split."""
    names = ", ".join(masks["classes"])
    console.print(Text(f"Masks of {names}, split {HOW[masks['split_by']]}:"))
    for side, images in masks["images"].items():
        whose = f" of {masks['patients'][side]:,} patients" if masks["patients"] else ""
        console.print(Text(f"  {side:<5} {images:,} images{whose}"))


def knn_table(result: dict[str, Any], finding: dict[str, Any]) -> tuple[str, Table]:
    """The table of kNN: balanced accuracy for each k, with its interval and the rest for one."""
    main, table = finding["setting"], _empty_table()
    settings = list(result["results"]["model"]["knn"])
    for k in settings:
        table.add_column(f"k = {k}", justify="right")
    metric, other = two_metrics(finding)
    table.add_column(METRIC_TITLES[other], justify="right")
    table.add_column("model minus this", justify="right")
    for name, tasks in result["results"].items():
        metrics = tasks["knn"]
        cells = []
        for k in settings:
            shown = with_interval if k == main else plain
            cells.append(shown(metrics[k][metric]))
        cells.append(with_interval(metrics[main][other]))
        table.add_row(_shown(name, result), *cells, _difference(finding, name))
    first, second = METRIC_TITLES[metric], METRIC_TITLES[other]
    return f"Nearest neighbours, {first} ({second} and differences at k = {main})", table


def linear_table(result: dict[str, Any], finding: dict[str, Any]) -> tuple[str, Table]:
    """The table of the linear probe: both metrics, and the difference in the first."""
    table = _empty_table()
    both = two_metrics(finding)
    for column in (*(METRIC_TITLES[metric] for metric in both), "model minus this"):
        table.add_column(column, justify="right")
    for name, tasks in result["results"].items():
        metrics = tasks["linear"][finding["setting"]]
        cells = [with_interval(metrics[key]) for key in both]
        table.add_row(_shown(name, result), *cells, _difference(finding, name))
    return "Linear probe", table


def two_metrics(finding: dict[str, Any]) -> tuple[str, str]:
    """The metric that a verdict is about, and the other one that is shown."""
    return finding["metric"], OTHER_METRIC[finding["metric"]]


def few_shot_table(result: dict[str, Any], finding: dict[str, Any]) -> tuple[str, Table]:
    """The table of few labels: balanced accuracy for each number of images a class."""
    table = _empty_table()
    for shots in result["results"]["model"]["few_shot"]:
        table.add_column(f"{shots} a class", justify="right")
    for name, tasks in result["results"].items():
        cells = [with_interval(of["balanced_accuracy"]) for of in tasks["few_shot"].values()]
        table.add_row(_shown(name, result), *cells)
    repeats = result["settings"]["few_shot"]["draws"]
    return (
        f"Few labels, balanced accuracy, mean of {repeats} draws"
        f" (the sentence is about {finding['setting']})",
        table,
    )


def segmentation_table(result: dict[str, Any], finding: dict[str, Any]) -> tuple[str, Table]:
    """Dice and IoU, mean over classes, and below them the Dice of each class if there are several.

    Classes are rows: there may be many.
    """
    table = _empty_table()
    for column in ("Dice", "IoU", "model minus this, Dice"):
        table.add_column(column, justify="right")
    classes = [key for key in result["results"]["model"]["segmentation"] if key != "mean"]
    for name, tasks in result["results"].items():
        metrics = tasks["segmentation"]["mean"]
        cells = [with_interval(metrics[key]) for key in ("dice", "iou")]
        table.add_row(_shown(name, result), *cells, _difference(finding, name))
    if len(classes) > 1:
        table.add_section()
        for label in classes:
            for name, tasks in result["results"].items():
                metrics = tasks["segmentation"][label]
                cells = [with_interval(metrics[key]) for key in ("dice", "iou")]
                table.add_row(_shown(f"{label}: {title(name)}", result), *cells, "")
    settings = result["settings"]["segmentation"]
    grid, by = settings["grid"], settings.get("by", "image")
    over = f", mean over {len(classes)} classes" if len(classes) > 1 else ""
    return f"Segmentation by a linear probe on {grid} x {grid} patches, by {by}{over}", table


TABLES = {
    "knn": knn_table,
    "linear": linear_table,
    "few_shot": few_shot_table,
    "segmentation": segmentation_table,
}


def _difference(finding: dict[str, Any], name: str) -> str:
    metric = finding["differences"].get(name)
    if metric is None:
        return ""
    return f"{metric['value']:+.3f} ({metric['low']:+.2f},{metric['high']:+.2f})"


def _empty_table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("features", no_wrap=True)
    return table


def _shown(name: str, result: dict[str, Any]) -> Text:
    """The name for people; of a long path, its end. A star says that the warnings are about it."""
    star = " *" if is_marked(result, name) else ""
    name = title(name)
    if len(name) > NAME_WIDTH:
        name = f"…{name[1 - NAME_WIDTH :]}"
    return Text(f"{name}{star}")
