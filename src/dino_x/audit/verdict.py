"""What the curves mean, in one sentence with its number, and as a table."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

FLOOR = 256  # the effective batch below which SK is not used by default
SHOWN_BATCH = 16  # images a step of the recommendation: what a small card holds
NEARLY_UNIFORM = 0.95  # entropy over log K above which targets tell images hardly apart
ALONE = "alone"


def equivalent_batch(curves: dict[str, Any], arm: str, batch: int) -> int | None:
    """The largest effective batch whose targets alone are no closer than those of ``arm``.

    Args:
        curves: of a group, see ``distance.measure``.
        arm: a queue, as ``"4096"``.
        batch: images a step beside that queue.

    Returns: images, or None if the batch alone is closer at every size, or there is no such point.
    """
    points = {point["batch"]: point["distance"]["mean"] for point in curves[arm]}
    if batch not in points:
        return None
    *sizes, _ = curves[ALONE]  # the last is the reference itself
    no_closer = [p["batch"] for p in sizes if p["distance"]["mean"] >= points[batch]]
    return max(no_closer, default=None)


def recommend(result: dict[str, Any]) -> str:
    """The one sentence, from the images taken together."""
    curves = result["groups"]["all"]["curves"]
    alone = {point["batch"]: point["distance"]["mean"] for point in curves[ALONE]}
    batch = SHOWN_BATCH if SHOWN_BATCH in alone else min(alone)
    best: tuple[int, int] | None = None  # (equivalent batch, minus the queue): the shorter one
    for queue in result["queues"]:
        equal = equivalent_batch(curves, str(queue["asked"]), batch)
        if equal is not None and equal > batch:
            best = max(best or (0, 0), (equal, -queue["rows"]))
    images = f"{result['images']:,}"
    if best is None:
        return (
            f"with {batch} images a step the targets are {alone[batch]:.3f} (total variation) from"
            f" those of {images} images, and a queue brings them no closer: use the largest"
            " effective batch you have time for"
        )
    equal, rows = best[0], -best[1]
    point = next(
        point
        for queue in result["queues"]
        if queue["rows"] == rows
        for point in curves[str(queue["asked"])]
        if point["batch"] == batch
    )
    return (
        f"with {batch} images a step and --queue {rows} the targets are at least as close to those"
        f" of {images} images as with an effective batch of {equal:,} (total variation"
        f" {point['distance']['mean']:.3f}; {alone[batch]:.3f} without the queue)"
    )


def warnings_of(result: dict[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
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
    """One line a batch size, distances side by side; then the other figures; then the sentence."""
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
    table.add_column("batch", justify="right")
    for name in groups:
        for arm in arms:
            title = "alone, 10-90%" if arm == ALONE else f"+ queue {int(arm):,}"
            table.add_column(f"{name}:\n{title}", justify="right")
    for size in [point["batch"] for point in groups["all"]["curves"][ALONE]]:
        cells = [
            _cell(group["curves"][arm], arm, size) for group in groups.values() for arm in arms
        ]
        table.add_row(f"{size:,}", *cells)
    table.add_section()
    soft = [
        f"{group['softmax']['distance']:.3f}" if arm == ALONE else ""
        for group in groups.values()
        for arm in arms
    ]
    table.add_row("softmax", *soft)
    console.print(table)
    console.print(_others(result))
    for warning in result["warnings"]:
        console.print(Text(f"Warning: {warning}."), style="yellow")
    sentence = result["recommendation"]
    console.print(Text(f"{sentence[0].upper()}{sentence[1:]}."), style="bold")


def _cell(points: list[dict[str, Any]], arm: str, size: int) -> str:
    for point in points:
        if point["batch"] == size:
            distance = point["distance"]
            band = f" {distance['low']:.3f}-{distance['high']:.3f}" if arm == ALONE else ""
            return f"{distance['mean']:.3f}{band}"
    return "-"


def _others(result: dict[str, Any]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="Targets of the batch alone, all | rare", title_justify="left"
    )
    for column in ("batch", "entropy / log K", "same top prototype", "prototypes in use"):
        table.add_column(column, justify="right")
    groups = result["groups"].values()
    for points in zip(*(group["curves"][ALONE] for group in groups), strict=True):
        cells = [
            " | ".join(f"{point[name]['mean']:.2f}" for point in points)
            for name in ("entropy", "same_top", "in_use")
        ]
        table.add_row(f"{points[0]['batch']:,}", *cells)
    soft = [
        " | ".join(f"{group['softmax'][name]:.2f}" for group in groups)
        for name in ("entropy", "same_top", "in_use")
    ]
    table.add_section()
    table.add_row("softmax", *soft)
    return table
