"""Which curves there are, what each is compared with, and what it says in words."""

import math
from dataclasses import dataclass, replace

from dino_x.report.plots import Chart, Line, Mark, draw, figure, number, sample
from dino_x.report.run_data import Curve, Finding, RunData


@dataclass(frozen=True)
class Kind:
    """A chart to make where its numbers were recorded.

    Attributes:
        title: a few words.
        names: keys of metrics.jsonl and what their lines are called.
        meaning: how to read it, one or two sentences.
        reference: what it is compared with: "log K", "K", or a number.
        bounds: of the y axis at least.
    """

    title: str
    names: dict[str, str]
    meaning: str
    reference: str | float | None = None
    bounds: tuple[float, float] | None = None


LOSS = [
    Kind(
        "Loss terms", {"dino": "DINO", "ibot": "iBOT"},
        "Guessing costs log K: a run learns once it is below.", "log K",
    ),
    Kind(
        "KoLeo", {"koleo": "KoLeo"},
        "Minus the mean log distance to the nearest other image: lower is more spread out.",
    ),
    Kind("Loss", {"loss": "all terms, weighted"}, "What is minimised."),
]  # fmt: skip
ONLINE = [
    Kind(
        "kNN while training", {"online/knn_balanced_accuracy": "balanced accuracy"},
        "Balanced accuracy on patients of the training split, measured while training.",
        bounds=(0, 1),
    ),
    Kind(
        "Retrieval while training", {"online/retrieval_top1": "found first"},
        "How often a view of an image finds another view of it among the other images.",
        bounds=(0, 1),
    ),
]  # fmt: skip
HEALTH = [
    Kind(
        "Targets", {
            "health/target_entropy": "one target", "health/mean_target_entropy": "their mean",
        },
        "Entropy as a share of log K. One target falls as the teacher becomes sure; their mean"
        " stays high while all prototypes are used.", bounds=(0, 1),
    ),
    Kind(
        "Prototypes in use", {
            "health/prototypes": "in use", "health/prototypes_first": "first choice of a view",
        },
        "How many of the K prototypes the targets are spread over.",
    ),
    Kind(
        "Spread of features", {
            "health/student/feature_std": "student", "health/teacher/feature_std": "teacher",
        },
        "1 is spread in all directions, 0 is all images alike (a point).", 1.0, (0, 1),
    ),
    Kind(
        "Effective rank", {
            "health/student/rankme": "student", "health/teacher/rankme": "teacher",
        },
        "RankMe: in how many directions features differ. A lasting fall is a dimensional"
        " collapse.",
    ),
    Kind(
        "Gradient norm", {
            "gradient_norm": "all", "health/gradient/patch_embedding": "patch embedding",
            "health/gradient/layers": "layers", "health/gradient/dino_head": "DINO head",
            "health/gradient/ibot_head": "iBOT head",
        },
        "Before clipping. Spikes that do not die away announce a run that diverges.",
    ),
]  # fmt: skip
MORE_HEALTH = [
    Kind(
        "Decay of the spectrum", {
            "health/student/alpha_req": "student", "health/teacher/alpha_req": "teacher",
        },
        "Alpha-ReQ: about 1 is good; well above, a few directions hold all the variance.", 1.0,
    ),
    Kind(
        "Distance between images", {
            "health/koleo_distance": "to the nearest, mean", "health/koleo_nearest": "smallest",
        },
        "On the unit sphere, 0 to 2. Near 0, images fall together.",
    ),
    Kind(
        "Similarity of patches", {"health/patch_similarity": "mean cosine"},
        "Between two patches of one image. Near 1, patches tell nothing apart.", bounds=(0, 1),
    ),
    Kind(
        "Teacher", {
            "health/teacher_distance": "student from teacher",
            "health/teacher_moved": "teacher from itself before",
        },
        "As a share of the teacher's weights. 0 is a teacher that is the student, or stands still.",
    ),
    Kind(
        "Update of a step", {
            "health/update_ratio": "all", "health/update/patch_embedding": "patch embedding",
            "health/update/layers": "layers", "health/update/dino_head": "DINO head",
            "health/update/ibot_head": "iBOT head",
        },
        "As a share of the weights it changes; about 0.001 is usual.",
    ),
]  # fmt: skip
SCHEDULES = [
    Kind("Learning rate", {"lr": "peak of all layers"}, "Warmup, then a cosine."),
    Kind("Weight decay", {"weight_decay": "weight decay"}, "A cosine."),
    Kind("Teacher momentum", {"teacher_momentum": "momentum"}, "1 is a teacher that stands still."),
    Kind("Teacher temperature", {"teacher_temperature": "temperature"}, "Of the targets."),
    Kind("Speed", {"images_per_second": "images a second"}, "Images of the effective batch."),
    Kind("Memory", {"memory_gib": "GiB"}, "The largest so far.", bounds=(0, 0)),
]


@dataclass(frozen=True)
class Drawn:
    """A chart on the page.

    Attributes:
        key: the page's name for it.
        title: a few words.
        svg: the picture.
        legend: (sample of the line, its name), where there is more than one line.
        words: what the curves did.
        meaning: how to read it.
        numbers: of each line its name, first, smallest, largest and last value.
    """

    key: str
    title: str
    svg: str
    legend: list[tuple[str, str]]
    words: str
    meaning: str
    numbers: list[tuple[str, ...]]


def drawn(kinds: list[Kind], run: RunData, prefix: str) -> list[Drawn]:
    """The charts of these kinds that there are numbers for, findings marked."""
    marks = marks_of(run.findings or [])
    charts: list[Drawn] = []
    for kind in kinds:
        curves = {name: run.curves[name] for name in kind.names if name in run.curves}
        if curves:
            key = f"{prefix}-{len(charts) + 1}"
            charts.append(draw_kind(kind, curves, run, marks, key))
    return charts


def draw_kind(
    kind: Kind, curves: dict[str, Curve], run: RunData, marks: list[Mark], key: str
) -> Drawn:
    """One chart with its legend and its words."""
    lines = [Line(kind.names[name], c.steps, c.values) for name, c in curves.items()]
    reference = reference_of(kind.reference, run)
    chart = Chart(kind.title, lines, reference, bounds=kind.bounds, described_by=f"{key}-words")
    first = min(curve.steps[0] for curve in curves.values())
    last = max(curve.steps[-1] for curve in curves.values())
    shown = [mark for mark in marks if mark.start <= last and (mark.end or last) >= first]
    legend = [(sample(i), line.label) for i, line in enumerate(lines)] if len(lines) > 1 else []
    words, svg = told(lines, reference), draw(replace(chart, marks=shown))
    return Drawn(key, kind.title, svg, legend, words, kind.meaning, [numbers_of(x) for x in lines])


def reference_of(reference: str | float | None, run: RunData) -> tuple[float, str] | None:
    """A value and its name; log K and K come from the settings."""
    prototypes = run.settings.get("head.prototypes")
    if isinstance(reference, str):
        if not prototypes:
            return None
        value = math.log(prototypes) if reference == "log K" else float(prototypes)
        return value, f"{reference} = {figure(value)}"
    return None if reference is None else (reference, number(reference))


def told(lines: list[Line], reference: tuple[float, str] | None) -> str:
    """``DINO from 5.77 to 4.31, iBOT from 5.76 to 2.9; log K = 5.55.``"""
    parts = []
    for line in lines:
        name = f"{line.label} " if len(lines) > 1 else ""
        first, last = figure(line.y[0]), figure(line.y[-1])
        if len(line.y) == 1 or first == last:
            parts.append(f"{name}{'stays at ' if len(line.y) > 1 else ''}{last}")
        else:
            parts.append(f"{name}from {first} to {last}")
    text = ", ".join(parts)
    tail = f"; the line is {reference[1]}" if reference else ""
    return f"{text[0].upper()}{text[1:]}{tail}."


def numbers_of(line: Line) -> tuple[str, ...]:
    """Name, first, smallest, largest and last value."""
    return line.label, *map(figure, (line.y[0], line.y.min(), line.y.max(), line.y[-1]))


def marks_of(findings: list[Finding]) -> list[Mark]:
    """Findings by their number in the text, from 1."""
    return [Mark(i, f.since, f.until) for i, f in enumerate(findings, start=1)]
