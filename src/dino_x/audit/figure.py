"""The curves as one figure: how far targets are from those of all images, by batch size."""

from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from dino_x.audit.verdict import ALONE, FLOOR

INK, MUTED = "#222222", "#777777"
COLOURS = ("#c1440e", "#2a7fb8", "#12436d")  # batch alone, shorter queue, longer queue
SOFTMAX = "#8a8a8a"
STYLES = {"all": "-", "rare": (0, (4, 2))}


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes the figure as a PNG of 1,170 x 780 px."""
    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    arms = {ALONE: "batch alone (band: 10-90% of draws)"} | {
        str(queue["asked"]): f"+ queue of {queue['rows']:,}" for queue in result["queues"]
    }
    for name, group in result["groups"].items():
        for arm, colour in zip(arms, COLOURS, strict=False):
            _curve(axes, group["curves"][arm], name, colour, band=arm == ALONE)
        axes.axhline(group["softmax"]["distance"], color=SOFTMAX, ls=STYLES[name], lw=1.4, zorder=1)
    sizes = [point["batch"] for point in result["groups"]["all"]["curves"][ALONE]]
    _axes(axes, sizes, result["images"])
    handles = [
        Line2D([], [], color=colour, lw=2.2, label=label)
        for colour, label in zip(COLOURS, arms.values(), strict=False)
    ]
    handles += [
        Line2D([], [], color=SOFTMAX, lw=1.4, label="softmax centering, any batch"),
        Line2D([], [], color=INK, lw=1.4, ls=STYLES["all"], label="solid: all images"),
        Line2D([], [], color=INK, lw=1.4, ls=STYLES["rare"], label=f"dashed: {result['rare']}"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip
    sentence = result["recommendation"]
    figure.suptitle(
        fill(f"{sentence[0].upper()}{sentence[1:]}.", 100), x=0.01, ha="left", fontsize=11,
        color=INK,
    )  # fmt: skip
    figure.savefig(path, format="png", metadata={"Software": None})


def _curve(axes: Axes, points: list[dict[str, Any]], name: str, colour: str, *, band: bool) -> None:
    sizes = [point["batch"] for point in points]
    means = [point["distance"]["mean"] for point in points]
    width = 2.2 if name == "all" else 1.4
    marker = "o" if name == "all" else None
    axes.plot(sizes, means, color=colour, ls=STYLES[name], lw=width, marker=marker, ms=4, zorder=3)
    if band and name == "all":
        low, high = ([point["distance"][end] for point in points] for end in ("low", "high"))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.18, lw=0, zorder=2)


def _axes(axes: Axes, sizes: list[int], images: int) -> None:
    axes.set_xscale("log", base=2)
    doubled = [size for size in sizes[:-1] if images / size > 1.5] + [images]
    axes.xaxis.set_major_locator(FixedLocator(doubled))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{size:,}" for size in doubled])
    axes.set_xlim(sizes[0] * 0.9, images * 1.1)
    axes.set_ylim(0, axes.dataLim.y1 * 1.08)
    axes.set_xlabel("images a step (effective batch)", color=INK)
    axes.set_ylabel(
        f"distance from the targets of {images:,} images\n(total variation: 0 same, 1 disjoint)",
        color=INK,
    )
    if sizes[0] < FLOOR < images:
        axes.axvline(FLOOR, color=MUTED, lw=1, ls=":", zorder=0)
        axes.annotate(
            f"floor of {FLOOR}", (FLOOR, 1), xycoords=("data", "axes fraction"), xytext=(5, -11),
            textcoords="offset points", fontsize=9, color=MUTED,
        )  # fmt: skip
    axes.grid(axis="y", color="#e6e6e6", lw=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
