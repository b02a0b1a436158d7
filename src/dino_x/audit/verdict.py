"""What the curves mean, in one sentence with its number, and as a table."""

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FLOOR = 256  # the effective batch below which SK is not used by default
SHOWN_BATCH = 16  # images a step of the recommendation: what a small GPU holds
NEARLY_UNIFORM = 0.95  # entropy over log K above which targets tell images hardly apart
ALONE = "alone"
WORTH = 1.1  # a queue that stands for fewer than so many times the images is not worth naming
OTHERS = ("entropy", "same_top", "in_use")  # metrics beside the distance
TINY = 1e-9  # a distance below it is rounding


def equivalent_batch(curves: dict[str, Any], arm: str, batch: int) -> float | None:
    """The effective batch whose targets alone are as close as those of ``batch`` with a queue.

    Read off the curve of the batch alone, a straight line between its points on logarithmic axes,
    and no further than its last point before the reference.

    Args:
        curves: of a group, see ``distance.measure``.
        arm: a queue, as ``"4096"``.
        batch: images a step beside that queue.

    Returns: images, or None if one of the curves has no point for it.
    """
    found = [point["distance"]["mean"] for point in curves[arm] if point["batch"] == batch]
    *points, _ = curves[ALONE]  # the last is the reference itself
    if not found or not points:
        return None
    sizes = np.array([point["batch"] for point in points])
    distances = np.minimum.accumulate([point["distance"]["mean"] for point in points])
    logs = np.log(np.maximum([found[0], *distances], TINY))
    return float(np.exp(np.interp(logs[0], logs[:0:-1], np.log(sizes[::-1]))))


def recommend(result: dict[str, Any]) -> str:
    """The one sentence, from the images taken together."""
    curves = result["groups"]["all"]["curves"]
    alone = {point["batch"]: point["distance"]["mean"] for point in curves[ALONE]}
    batch = SHOWN_BATCH if SHOWN_BATCH in alone else min(alone)
    images = f"{result['images']:,}"
    equivalents = {
        queue["rows"]: (equivalent_batch(curves, str(queue["asked"]), batch), str(queue["asked"]))
        for queue in result["queues"]
    }
    helpful = {
        rows: (equal, arm)
        for rows, (equal, arm) in equivalents.items()
        if equal is not None and equal > WORTH * batch
    }
    if not helpful:
        return (
            f"with {batch} images a step the targets are {alone[batch]:.3f} (total variation) from"
            f" those of {images} images, and a queue brings them no closer: use the largest"
            " effective batch you have time for"
        )
    rows = max(helpful, key=lambda rows: (helpful[rows][0], -rows))
    equal, arm = helpful[rows]
    queued = next(p["distance"]["mean"] for p in curves[arm] if p["batch"] == batch)
    return (
        f"with {batch} images a step and --queue {rows} the targets are as close to those of"
        f" {images} images as with an effective batch of about {int(float(f'{equal:.2g}')):,}"
        f" (total variation {queued:.3f}; {alone[batch]:.3f} without the queue)"
    )


def warnings_of(result: dict[str, Any]) -> list[str]:
    """What a reader has to know before believing the numbers."""
    found = []
    for queue in result["queues"]:
        if queue["rows"] < queue["asked"]:
            found.append(
                f"a queue of {queue['asked']:,} needs more images than {result['images']:,}: it is"
                f" shown with {queue['rows']:,} rows"
            )
    if result["settings"]["passes"] > 1:
        found.append(
            f"there are too few images to fill the queue once: it holds up to"
            f" {result['settings']['passes']} pairs of crops of an image"
        )
    entropy = result["groups"]["all"]["reference"]["entropy"]
    if entropy > NEARLY_UNIFORM:
        found.append(
            f"targets are nearly uniform (entropy {entropy:.3f} of log K) even with all images: the"
            " model hardly tells images apart, so every distance is small and says little"
        )
    return found


def print_table(result: dict[str, Any], console: Console) -> None:
    """One line a batch size, distances side by side; then the other metrics; then the sentence."""
    groups, settings = result["groups"], result["settings"]
    console.print(
        Text(
            f"{result['images']:,} images, {settings['prototypes']:,} prototypes, teacher"
            f" temperature {settings['temperature']:g}, {settings['repeats']} draws;"
            f" rare: {groups['rare']['images']:,} images, {result['rare']}"
        )
    )
    arms = [ALONE, *(str(queue["asked"]) for queue in result["queues"])]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"Distance from the targets of {result['images']:,} images (total variation)",
        title_justify="left",
    )
    table.add_column("images\na step", justify="right")
    for name in groups:
        table.add_column(f"{name}:\nalone", justify="right")
        if name == "all":
            table.add_column("\n10-90%", justify="right", no_wrap=True, min_width=11)
        for arm in arms[1:]:
            table.add_column(f"queue\n{int(arm):,}", justify="right")
    for size in [point["batch"] for point in groups["all"]["curves"][ALONE]]:
        cells = []
        for name, group in groups.items():
            cells += _distance_cells(group["curves"], size, interval=name == "all")
        table.add_row(f"{size:,}", *cells)
    table.add_section()
    soft = {name: f"{group['softmax']['distance']:.3f}" for name, group in groups.items()}
    table.add_row("softmax", soft["all"], *[""] * len(arms), soft["rare"])
    console.print(table)
    console.print(_others(result))
    for warning in result["warnings"]:
        console.print(Text(f"Warning: {warning}."), style="yellow")
    sentence = result["recommendation"]
    console.print(Text(f"{sentence[0].upper()}{sentence[1:]}."), style="bold")


def _distance_at(points: list[dict[str, Any]], size: int) -> dict[str, float] | None:
    """The distance at a batch size, or None if the curve has no point for it."""
    return next((point["distance"] for point in points if point["batch"] == size), None)


def _distance_cells(curves: dict[str, Any], size: int, *, interval: bool) -> list[str]:
    """Distances of a group at one batch size: the batch alone, its interval, and each queue."""
    cells = []
    for arm, points in curves.items():
        distance = _distance_at(points, size)
        cells.append("-" if distance is None else f"{distance['mean']:.3f}")
        if arm == ALONE and interval:
            assert distance is not None
            cells.append(f"{distance['low']:.3f}-{distance['high']:.3f}")
    return cells


def _others(result: dict[str, Any]) -> Table:
    """The other metrics of the targets of the batch alone, and of softmax centering."""
    table = Table(
        box=box.SIMPLE_HEAD, title="Targets of the batch alone, all | rare", title_justify="left"
    )
    for column in ("batch", "entropy / log K", "same top prototype", "prototypes in use"):
        table.add_column(column, justify="right")
    groups = result["groups"].values()
    curves = [group["curves"][ALONE] for group in groups]
    for points in zip(*curves, strict=True):
        means = [{name: point[name]["mean"] for name in OTHERS} for point in points]
        table.add_row(f"{points[0]['batch']:,}", *_side_by_side(means))
    table.add_section()
    table.add_row("softmax", *_side_by_side([group["softmax"] for group in groups]))
    return table


def _side_by_side(groups: list[dict[str, float]]) -> list[str]:
    """A cell a metric, with the values of all groups in it."""
    return [" | ".join(f"{group[name]:.2f}" for group in groups) for name in OTHERS]
