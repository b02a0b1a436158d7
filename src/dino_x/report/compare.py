"""``dino-x compare``: runs side by side, with what makes them hard to compare said first.

R: runs, called A, B, ... in the order given; A is what the others are compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dino_x.config.presets import as_yaml
from dino_x.errors import UserError
from dino_x.progress import duration
from dino_x.report.compare_scores import (
    Scored,
    lettered,
    letters,
    same_evaluation,
    scored_of,
)
from dino_x.report.curves import (
    HEALTH,
    LOSS,
    MORE_HEALTH,
    ONLINE,
    ChartKind,
    DrawnChart,
    in_words,
    numbers_of,
    reference_of,
)
from dino_x.report.page import render, write_page
from dino_x.report.plots import STYLES, Chart, PlotLine, draw, sample, three_digits
from dino_x.report.run_data import RunData, read_run
from dino_x.report.settings import meaning_of, plain, shown
from dino_x.report.verdict import state_of
from dino_x.runs.checkpoint import checkpoints

LAST_SHARE = 0.1  # of the steps, whose mean is the final number of a curve
# What a loss means depends on these: with others it is on another scale.
SCALES = (
    "head.prototypes", "loss.student_temperature", "loss.dino_weight", "loss.ibot_weight",
    "loss.regularizer", "loss.koleo_weight", "loss.koleo_group", "loss.sigreg_weight",
    "teacher.temperature", "loss.centering",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """An option that is not the same in all runs."""

    name: str
    values: list[str]
    meaning: str


@dataclass(frozen=True)
class SideBySide:
    """Everything that is said about the runs.

    Attributes:
        names: ``A: demo`` and so on.
        flags: what makes the runs hard to compare, sentences.
        differences: settings.
        finals: (what, its value in each run).
        charts: one a curve, with a line a run.
        scored: evaluation.
    """

    names: list[str]
    flags: list[str]
    differences: list[Difference]
    finals: list[tuple[str, list[str]]]
    charts: list[DrawnChart]
    scored: list[Scored]


def compare(paths: Sequence[Path], *, hide_paths: bool = False) -> SideBySide:
    """Put runs side by side.

    Args:
        paths: 2 to 6 RUN folders.
        hide_paths: for a page that may be passed on, paths of data are not named.

    Raises: UserError for too few or too many, or a folder that is no run.
    """
    if not 2 <= len(paths) <= STYLES:
        raise UserError(f"compare takes 2 to {STYLES} runs, got {len(paths)}")
    runs = [read_run(path) for path in paths]
    same_test = same_evaluation(runs)
    return SideBySide(
        names=[f"{letter}: {run.name}" for letter, run in lettered(runs)],
        flags=flags_of(runs, same_test),
        differences=differences_of(runs, hide_paths),
        finals=finals_of(runs),
        charts=charts_of(runs),
        scored=scored_of(runs, same_test),
    )


def differences_of(runs: Sequence[RunData], hide_paths: bool) -> list[Difference]:
    """Options whose values differ, in the order of the options."""
    names: dict[str, None] = {}
    for run in runs:
        names |= dict.fromkeys(run.settings)
    found = []
    for name in names:
        values = [plain(run.settings.get(name)) for run in runs]
        if values.count(values[0]) < len(values):
            texts = [shown(name, value) if hide_paths else as_yaml(value) for value in values]
            found.append(Difference(name, texts, meaning_of(name)))
    return found


def flags_of(runs: Sequence[RunData], same_test: bool | None) -> list[str]:
    """Sentences about what must be known before the numbers are read."""
    unfinished = [
        f"{letter} is not finished: {state_of(run).text}."
        for letter, run in lettered(runs)
        if not run.finished
    ]
    flags = [
        different_data(runs),
        *unfinished,
        different_lengths(runs),
        different_scales(runs),
        not_evaluated(runs),
    ]
    if same_test is False:
        flags.append(
            "They were evaluated on different images or labels, so the metrics are not compared:"
            " evaluate all of them with the same --data and --labels."
        )
    return [flag for flag in flags if flag]


def different_lengths(runs: Sequence[RunData]) -> str | None:
    """A sentence if finished runs have seen different numbers of images."""
    seen = [images_seen(run) for run in runs]
    if len(set(seen)) == 1 or not all(run.finished for run in runs):
        return None
    return f"They saw different numbers of images: {listed(runs, seen)}."


def images_seen(run: RunData) -> int:
    """Images that the steps so far have looked at, each as often as it was seen."""
    return run.done * int(run.settings.get("train.effective_batch") or 0)


def different_scales(runs: Sequence[RunData]) -> str | None:
    """A sentence if options differ that losses depend on."""
    differ = [name for name in SCALES if not is_same(runs, name)]
    if not differ:
        return None
    return f"Their losses are not on one scale ({', '.join(differ)} differ)."


def is_same(runs: Sequence[RunData], option: str) -> bool:
    """Whether an option has one value in all runs."""
    return len({str(run.settings.get(option)) for run in runs}) == 1


def not_evaluated(runs: Sequence[RunData]) -> str | None:
    """A sentence about the runs without an evaluation."""
    missing = [letter for letter, run in lettered(runs) if not run.evaluation]
    if not missing:
        return None
    verb = "is" if len(missing) == 1 else "are"
    return f"{' and '.join(missing)} {verb} not evaluated."


def listed(runs: Sequence[RunData], values: Sequence[int]) -> str:
    """``A 30,720, B 61,440``."""
    return ", ".join(f"{a} {v:,}" for a, v in zip(letters(runs), values, strict=True))


def different_data(runs: Sequence[RunData]) -> str | None:
    """A sentence if the runs were trained on different images, or nobody can tell."""
    counts = [run.images for run in runs if run.images is not None]
    if len(counts) == len(runs) and len(set(counts)) > 1:
        return f"They were trained on different data: {listed(runs, counts)} images."
    hashes = {images_hash(run) for run in runs}
    if None not in hashes:
        differ = len(hashes) > 1
        return "They were trained on different data, if as many images." if differ else None
    if not is_same(runs, "data.paths"):
        return "Their data.paths differ, so they may have been trained on different data."
    return None


def images_hash(run: RunData) -> str | None:
    """What the newest checkpoint says of the images; its tensors are not read."""
    saved = checkpoints(run.path / "checkpoints")
    if not saved:
        return None
    try:
        state = torch.load(saved[-1], map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises many kinds for a damaged file; then the paths have to do
        return None
    return state.get("images_hash")


def finals_of(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Where each run is, and the mean of each curve over the last tenth of its steps."""
    rows = [
        ("state", [state_of(run).text for run in runs]),
        ("images seen", [f"{images_seen(run):,}" for run in runs]),
        ("time in steps", [time_of(run) for run in runs]),
    ]
    for curve in recorded(runs, at_least=1):
        rows.append((curve.title, [final(run, curve.name) for run in runs]))
    if any(run.findings is not None for run in runs):
        rows.append(("health", [health_words(run) for run in runs]))
    return rows


def time_of(run: RunData) -> str:
    """The time spent in steps, or a dash."""
    return duration(run.seconds) if run.seconds else "-"


@dataclass(frozen=True)
class RecordedCurve:
    """A curve that runs have: its key in metrics.jsonl, how it is drawn, what it is called."""

    name: str
    kind: ChartKind
    title: str


def recorded(runs: Sequence[RunData], at_least: int) -> list[RecordedCurve]:
    """The curves that so many runs have, in the order in which they are shown."""
    found = []
    for kind in [*ONLINE, *LOSS, *HEALTH, *MORE_HEALTH]:
        for name, label in kind.names.items():
            having = sum(name in run.curves for run in runs)
            if having >= at_least and not is_part(name):
                title = kind.title if len(kind.names) == 1 else f"{kind.title}: {label}"
                found.append(RecordedCurve(name, kind, title))
    return found


def is_part(name: str) -> bool:
    """Whether a curve is of a part of the network: too many to set side by side."""
    return name.startswith(("health/gradient/", "health/update/"))


def final(run: RunData, name: str) -> str:
    """The mean of a curve over the last tenth of its points."""
    curve = run.curves.get(name)
    if curve is None:
        return "-"
    count = max(1, round(LAST_SHARE * len(curve.values)))
    return three_digits(float(curve.values[-count:].mean()))


def health_words(run: RunData) -> str:
    """The states that were found."""
    if run.findings is None:
        return "not measured"
    words = [f"{f.state}, over" if f.until is not None else f.state for f in run.findings]
    return "; ".join(words) or "good"


def charts_of(runs: Sequence[RunData]) -> list[DrawnChart]:
    """One chart a curve that at least two runs have, a line a run."""
    curves = recorded(runs, at_least=2)
    return [overlaid(curve, runs, f"chart-{i}") for i, curve in enumerate(curves, start=1)]


def overlaid(curve: RecordedCurve, runs: Sequence[RunData], key: str) -> DrawnChart:
    """One curve of several runs; a run has the same colour and dash in every chart."""
    lines, styles, legend = [], [], []
    references = set()
    for style, (letter, run) in enumerate(lettered(runs)):
        if curve.name in run.curves:
            points = run.curves[curve.name]
            lines.append(PlotLine(letter, points.steps, points.values))
            styles.append(style)
            legend.append((sample(style), f"{letter}: {run.name}"))
            references.add(reference_of(curve.kind.reference, run))
    reference = references.pop() if len(references) == 1 else None
    chart = Chart(
        curve.title, lines, reference, bounds=curve.kind.bounds, described_by=f"{key}-words",
        styles=styles, unit=curve.kind.unit,
    )  # fmt: skip
    return DrawnChart(
        key=key,
        title=curve.title,
        unit=curve.kind.unit,
        svg=draw(chart),
        legend=legend,
        words=in_words(lines, reference),
        meaning=curve.kind.meaning,
        numbers=[numbers_of(line) for line in lines],
    )


def compare_page(paths: Sequence[Path], out: Path) -> None:
    """Write the comparison as a page.

    Raises: UserError as `compare`, or if the file cannot be written.
    """
    result = compare(paths, hide_paths=True)
    first = [item for item in result.scored if item.headline]
    more = [item for item in result.scored if not item.headline]
    write_page(render("compare.html", page=result, first=first, more=more), out)
