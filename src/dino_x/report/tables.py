"""Evaluation as tables: each row has its number and a dot with its interval on a common axis."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dino_x.report.plots import Scale, interval, interval_axis
from dino_x.report.scores import MODEL, Comparison, comparisons, headlines, title_of


@dataclass(frozen=True)
class Row:
    """One model: its name, its figure and interval as text, both as SVG."""

    name: str
    value: str
    between: str
    svg: str
    main: bool


@dataclass(frozen=True)
class Table:
    """One task, setting and metric."""

    title: str
    words: str
    rows: list[Row]
    axis: list[tuple[float, str]]


def evaluation_tables(evaluation: dict[str, Any]) -> tuple[list[Table], list[Table]]:
    """The headline of each task, and all other metrics. What they say stands at the top."""
    first = headlines(evaluation)
    others = [item for item in comparisons(evaluation) if item not in first]
    return [table_of(item, "") for item in first], [table_of(item, "") for item in others]


def table_of(comparison: Comparison, words: str, main: Collection[str] = (MODEL,)) -> Table:
    """One table on one axis; the rows in ``main`` stand out."""
    scores = comparison.scores.values()
    ends = [end for score in scores for end in (score.value, score.low, score.high)]
    scale = Scale.around([end for end in ends if end is not None])
    rows = [
        Row(
            title_of(name),
            f"{score.value:.3f}",
            score.between,
            interval(scale, score.value, score.low, score.high, main=name in main),
            name in main,
        )
        for name, score in comparison.scores.items()
    ]
    return Table(comparison.title, words, rows, interval_axis(scale))


def tested_on(evaluation: dict[str, Any]) -> str:
    """``700 test images of 315 patients, split as given.``; what is not known is not said."""
    counts, settings = evaluation.get("counts") or {}, evaluation.get("settings", {})
    side = settings.get("tested_split", "test")
    if side not in counts:
        return ""
    patients = evaluation.get("patients") or {}
    whose = f" of {patients[side]:,} patients" if side in patients else ""
    classes = ", ".join(f"{count:,} {label}" for label, count in counts[side].items())
    how = {
        "given": ", split as given",
        "patient": ", split made by patient",
        "image": ", split made by file: patients may be on both sides",
    }
    split = how.get(str(settings.get("split_by")), "")
    images = sum(counts[side].values())
    both = settings.get("features") == "cls+mean"
    features = " Features: CLS and the mean patch." if both else ""
    return f"Tested on {images:,} images{whose} ({classes}){split}.{features}"
