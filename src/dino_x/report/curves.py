"""Which curves there are, what each is compared with, and what it says in words."""

import math
from dataclasses import dataclass

from dino_x.report.plots import Chart, MarkedSteps, PlotLine, draw, number, sample, three_digits
from dino_x.report.run_data import Finding, RunData


@dataclass(frozen=True)
class ChartKind:
    """A chart to make where its numbers were recorded.

    Attributes:
        title: a few words.
        names: keys of metrics.jsonl and what their lines are called.
        meaning: how to read it, one or two sentences.
        reference: what it is compared with: "log K", "K", or a number.
        bounds: of the y axis at least.
        unit: of the y axis; empty for a number without one.
    """

    title: str
    names: dict[str, str]
    meaning: str
    reference: str | float | None = None
    bounds: tuple[float, float] | None = None
    unit: str = ""


LOSS = [
    ChartKind(
        "Loss terms", {"dino": "DINO", "ibot": "iBOT"},
        "A run learns once it is below what guessing costs: log K, or with softmax centering the"
        " entropy of the mean target.", "log K", unit="nats",
    ),
    ChartKind(
        "KoLeo", {"koleo": "KoLeo"},
        "Minus the mean log distance to the nearest other image: lower is more spread out.",
        unit="nats",
    ),
    ChartKind(
        "SIGReg", {"sigreg": "SIGReg"},
        "Distance from a standard normal distribution: about 1 is none.",
        unit="statistic",
    ),
    ChartKind("Loss", {"loss": "all terms, weighted"}, "What is minimised.", unit="nats"),
]  # fmt: skip
ONLINE = [
    ChartKind(
        "kNN while training", {"online/knn_balanced_accuracy": "balanced accuracy"},
        "Balanced accuracy on patients of the training split, measured while training.",
        bounds=(0, 1), unit="share",
    ),
    ChartKind(
        "Retrieval while training", {"online/retrieval_top1": "found first"},
        "How often a view of an image finds another view of it among the other images.",
        bounds=(0, 1), unit="share",
    ),
]  # fmt: skip
HEALTH = [
    ChartKind(
        "Targets", {
            "health/target_entropy": "one target", "health/mean_target_entropy": "their mean",
        },
        "Entropy as a share of log K. One target falls as the teacher becomes sure; their mean"
        " stays high while all prototypes are used.", bounds=(0, 1), unit="share of log K",
    ),
    ChartKind(
        "Prototypes in use", {
            "health/prototypes": "in use", "health/prototypes_first": "first choice of a view",
        },
        "How many of the K prototypes the targets are spread over.", unit="prototypes",
    ),
    ChartKind(
        "Spread of features", {
            "health/student/feature_std": "student", "health/teacher/feature_std": "teacher",
        },
        "1 is spread in all directions, 0 is all images alike (a point).", 1.0, (0, 1),
        "0 to 1",
    ),
    ChartKind(
        "Effective rank", {
            "health/student/rankme": "student", "health/teacher/rankme": "teacher",
        },
        "RankMe: in how many directions features differ. A lasting fall is a dimensional"
        " collapse.", unit="directions",
    ),
    ChartKind(
        "Gradient norm", {
            "gradient_norm": "all", "health/gradient/patch_embedding": "patch embedding",
            "health/gradient/layers": "layers", "health/gradient/dino_head": "DINO head",
            "health/gradient/ibot_head": "iBOT head",
        },
        "Before clipping. Spikes that do not die away announce a run that diverges.",
        unit="nats a unit of weight",
    ),
]  # fmt: skip
MORE_HEALTH = [
    ChartKind(
        "Decay of the spectrum", {
            "health/student/alpha_req": "student", "health/teacher/alpha_req": "teacher",
        },
        "Alpha-ReQ: about 1 is good; well above, a few directions hold all the variance.", 1.0,
        unit="exponent",
    ),
    ChartKind(
        "Distance between images", {
            "health/koleo_distance": "to the nearest, mean", "health/koleo_nearest": "smallest",
        },
        "On the unit sphere, 0 to 2. Near 0, images fall together.", unit="radii",
    ),
    ChartKind(
        "Similarity of patches", {"health/patch_similarity": "mean cosine"},
        "Between two patches of one image. Near 1, patches tell nothing apart.", bounds=(0, 1),
        unit="cosine",
    ),
    ChartKind(
        "Teacher", {
            "health/teacher_distance": "student from teacher",
            "health/teacher_moved": "teacher from itself before",
        },
        "As a share of the teacher's weights. 0 is a teacher that is the student, or stands still.",
        unit="share of the weights",
    ),
    ChartKind(
        "Update of a step", {
            "health/update_ratio": "all", "health/update/patch_embedding": "patch embedding",
            "health/update/layers": "layers", "health/update/dino_head": "DINO head",
            "health/update/ibot_head": "iBOT head",
        },
        "As a share of the weights it changes; about 0.001 is usual.",
        unit="share of the weights",
    ),
]  # fmt: skip
SCHEDULES = [
    ChartKind(
        "Learning rate",
        {"lr": "peak of all layers"},
        "Warmup, then a cosine.",
        unit="weight units a step",
    ),
    ChartKind("Weight decay", {"weight_decay": "weight decay"}, "A cosine.", unit="times the rate"),
    ChartKind(
        "Teacher momentum",
        {"teacher_momentum": "momentum"},
        "1 is a teacher that stands still.",
        unit="share kept a step",
    ),
    ChartKind(
        "Teacher temperature",
        {"teacher_temperature": "temperature"},
        "Of the targets.",
        unit="cosine",
    ),
    ChartKind(
        "Speed",
        {"images_per_second": "images a second"},
        "Images of the effective batch.",
        unit="images/s",
    ),
    ChartKind("Memory", {"memory_gib": "GiB"}, "The largest so far.", bounds=(0, 0), unit="GiB"),
]


@dataclass(frozen=True)
class DrawnChart:
    """A chart on the page.

    Attributes:
        key: the page's name for it.
        title: a few words.
        svg: the picture.
        unit: of the y axis; may be empty.
        legend: (sample of the line, its name), where there is more than one line.
        words: what the curves did.
        meaning: how to read it.
        numbers: of each line its name, first, smallest, largest and last value.
    """

    key: str
    title: str
    unit: str
    svg: str
    legend: list[tuple[str, str]]
    words: str
    meaning: str
    numbers: list[tuple[str, ...]]


def drawn(kinds: list[ChartKind], run: RunData, prefix: str) -> list[DrawnChart]:
    """The charts of these kinds that there are numbers for, findings marked."""
    recorded = [kind for kind in kinds if run.curves.keys() & kind.names.keys()]
    return [draw_kind(kind, run, f"{prefix}-{i}") for i, kind in enumerate(recorded, start=1)]


def draw_kind(kind: ChartKind, run: RunData, key: str) -> DrawnChart:
    """One chart with its legend and its words."""
    curves = {label: run.curves[name] for name, label in kind.names.items() if name in run.curves}
    lines = [PlotLine(label, curve.steps, curve.values) for label, curve in curves.items()]
    reference = reference_of(kind.reference, run)
    if kind.reference == "log K" and (guessing := guessing_line(run)) is not None:
        lines.append(guessing)
        curves[guessing.label] = run.curves["health/mean_target_entropy"]
        reference = None
    first = min(line.x[0] for line in lines)
    last = max(line.x[-1] for line in lines)
    chart = Chart(
        kind.title, lines, reference, marks_within(run.findings or [], first, last),
        bounds=kind.bounds, described_by=f"{key}-words", unit=kind.unit,
    )  # fmt: skip
    labels = list(curves) if len(curves) > 1 else []
    return DrawnChart(
        key=key,
        title=kind.title,
        unit=kind.unit,
        svg=draw(chart),
        legend=[(sample(style), label) for style, label in enumerate(labels)],
        words=in_words(lines, reference),
        meaning=kind.meaning,
        numbers=[numbers_of(line) for line in lines],
    )


def guessing_line(run: RunData) -> PlotLine | None:
    """What guessing costs with softmax centering, over the run; None where it is log K."""
    prototypes = run.settings.get("head.prototypes")
    entropy = run.curves.get("health/mean_target_entropy")
    if run.settings.get("loss.centering") != "softmax" or entropy is None or not prototypes:
        return None
    return PlotLine("guessing", entropy.steps, entropy.values * math.log(prototypes))


def reference_of(reference: str | float | None, run: RunData) -> tuple[float, str] | None:
    """A value and its name; log K and K come from the settings."""
    if reference is None:
        return None
    if not isinstance(reference, str):
        return reference, number(reference)
    prototypes = run.settings.get("head.prototypes")
    if not prototypes:
        return None
    value = math.log(prototypes) if reference == "log K" else float(prototypes)
    return value, f"{reference} = {three_digits(value)}"


def in_words(lines: list[PlotLine], reference: tuple[float, str] | None) -> str:
    """``DINO from 5.77 to 4.31, iBOT from 5.76 to 2.9; log K = 5.55.``"""
    parts = [course_of(line) for line in lines]
    if len(lines) > 1:
        parts = [f"{line.label} {part}" for line, part in zip(lines, parts, strict=True)]
    text = ", ".join(parts)
    tail = f"; the line is {reference[1]}" if reference else ""
    return f"{text[0].upper()}{text[1:]}{tail}."


def course_of(line: PlotLine) -> str:
    """``from 5.77 to 4.31``, ``stays at 5.77``, or the only value."""
    first, last = three_digits(line.y[0]), three_digits(line.y[-1])
    if len(line.y) == 1:
        return last
    return f"stays at {last}" if first == last else f"from {first} to {last}"


def marks_within(findings: list[Finding], first: float, last: float) -> list[MarkedSteps]:
    """The findings in a stretch of steps, by their number in the text, from 1."""
    marks = [MarkedSteps(i, f.since, f.until) for i, f in enumerate(findings, start=1)]
    begun = [mark for mark in marks if mark.start <= last]
    return [mark for mark in begun if (mark.end or last) >= first]


def numbers_of(line: PlotLine) -> tuple[str, ...]:
    """Name, first, smallest, largest and last value."""
    return line.label, *map(three_digits, (line.y[0], line.y.min(), line.y.max(), line.y[-1]))
