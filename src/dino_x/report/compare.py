"""``dino-x compare``: runs side by side, with what makes them hard to compare said first.

R: runs, called A, B, ... in the order given; A is what the others are compared with.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dino_x.config.presets import as_yaml
from dino_x.errors import UserError
from dino_x.report import scores
from dino_x.report.curves import (
    HEALTH,
    LOSS,
    MORE_HEALTH,
    ONLINE,
    Drawn,
    Kind,
    numbers_of,
    reference_of,
    told,
)
from dino_x.report.page import render, write_page
from dino_x.report.plots import STYLES, Chart, Line, draw, figure, sample
from dino_x.report.run_data import RunData, read_run
from dino_x.report.scores import MODEL, Comparison
from dino_x.report.settings import meaning_of, plain, shown
from dino_x.report.tables import Table, table_of
from dino_x.report.verdict import state_of
from dino_x.runs.checkpoint import checkpoints
from dino_x.training.report import duration

LAST_SHARE = 0.1  # of the steps, whose mean is the final number of a curve
# What a loss means depends on these: with others it is on another scale.
SCALES = (
    "head.prototypes", "loss.student_temperature", "loss.dino_weight", "loss.ibot_weight",
    "loss.koleo_weight", "loss.koleo_group", "teacher.temperature", "loss.centering",
)  # fmt: skip
# Of the settings of an evaluation, those that make it another one.
EVALUATED = ("labels", "label_column", "masks", "split_by", "tested_split")


@dataclass(frozen=True)
class Difference:
    """An option that is not the same in all runs."""

    name: str
    values: list[str]
    meaning: str


@dataclass(frozen=True)
class Scored:
    """One task, setting and metric.

    Attributes:
        comparison: the runs and the baselines.
        runs: which of its names are runs.
        against: what the other runs differ from A by, sentences.
        headline: whether the verdict on its task is about it.
    """

    comparison: Comparison
    runs: list[str]
    against: list[str]
    headline: bool

    @property
    def table(self) -> Table:
        """For the page."""
        return table_of(self.comparison, " ".join(self.against), self.runs)


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
    charts: list[Drawn]
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
        names=[f"{letter}: {run.name}" for letter, run in zip(letters(runs), runs, strict=True)],
        flags=flags_of(runs, same_test),
        differences=differences_of(runs, hide_paths),
        finals=finals_of(runs),
        charts=charts_of(runs),
        scored=scored_of(runs, same_test),
    )


def letters(runs: Sequence[RunData]) -> str:
    """A, B, ... as many as there are runs."""
    return string.ascii_uppercase[: len(runs)]


def differences_of(runs: Sequence[RunData], hide_paths: bool) -> list[Difference]:
    """Options whose values differ, in the order of the options."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    found = []
    for name in names:
        values = [plain(run.settings.get(name)) for run in runs]
        if any(value != values[0] for value in values):
            texts = [shown(name, value) if hide_paths else as_yaml(value) for value in values]
            found.append(Difference(name, texts, meaning_of(name)))
    return found


def flags_of(runs: Sequence[RunData], same_test: bool | None) -> list[str]:
    """Sentences about what must be known before the numbers are read."""
    flags = []
    if (data := different_data(runs)) is not None:
        flags.append(data)
    for letter, run in zip(letters(runs), runs, strict=True):
        if not run.finished:
            flags.append(f"{letter} is not finished: {state_of(run).text}.")
    seen = [run.done * int(run.settings.get("train.effective_batch") or 0) for run in runs]
    if len(set(seen)) > 1 and all(run.finished for run in runs):
        flags.append(f"They saw different numbers of images: {listed(runs, seen)}.")
    scale = [name for name in SCALES if len({str(run.settings.get(name)) for run in runs}) > 1]
    if scale:
        flags.append(f"Their losses are not on one scale ({', '.join(scale)} differ).")
    missing = [
        letter for letter, run in zip(letters(runs), runs, strict=True) if not run.evaluation
    ]
    if missing:
        flags.append(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not evaluated."
        )
    if same_test is False:
        flags.append(
            "They were evaluated on different images or labels, so the figures are not compared:"
            " evaluate all of them with the same --data and --labels."
        )
    return flags


def listed(runs: Sequence[RunData], values: Sequence[int]) -> str:
    """``A 30,720, B 61,440``."""
    return ", ".join(f"{a} {v:,}" for a, v in zip(letters(runs), values, strict=True))


def different_data(runs: Sequence[RunData]) -> str | None:
    """A sentence if the runs were trained on different images, or nobody can tell."""
    counts = [run.images for run in runs]
    hashes = [images_hash(run) for run in runs]
    if len(set(counts)) > 1 and None not in counts:
        return (
            f"They were trained on different data: {listed(runs, [c or 0 for c in counts])} images."
        )
    if None not in hashes:
        return (
            "They were trained on different data, if as many images."
            if len(set(hashes)) > 1
            else None
        )
    if len({str(run.settings.get("data.paths")) for run in runs}) > 1:
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
    rows: list[tuple[str, list[str]]] = [("state", [state_of(run).text for run in runs])]
    batches = [int(run.settings.get("train.effective_batch") or 0) for run in runs]
    rows.append(
        ("images seen", [f"{run.done * b:,}" for run, b in zip(runs, batches, strict=True)])
    )
    rows.append(("time in steps", [duration(run.seconds) if run.seconds else "-" for run in runs]))
    for kind in [*ONLINE, *LOSS, *HEALTH, *MORE_HEALTH]:
        for name, label in kind.names.items():
            if any(name in run.curves for run in runs) and not is_part(name):
                title = kind.title if len(kind.names) == 1 else f"{kind.title}: {label}"
                rows.append((title, [final(run, name) for run in runs]))
    if any(run.findings is not None for run in runs):
        rows.append(("health", [health_words(run) for run in runs]))
    return rows


def is_part(name: str) -> bool:
    """Whether a curve is of a part of the network: too many to set side by side."""
    return name.startswith(("health/gradient/", "health/update/"))


def final(run: RunData, name: str) -> str:
    """The mean of a curve over the last tenth of its points."""
    curve = run.curves.get(name)
    if curve is None:
        return "-"
    count = max(1, round(LAST_SHARE * len(curve.values)))
    return figure(float(curve.values[-count:].mean()))


def health_words(run: RunData) -> str:
    """The states that were found."""
    if run.findings is None:
        return "not measured"
    words = [f.state if f.until is None else f"{f.state}, over" for f in run.findings]
    return "; ".join(words) or "good"


def charts_of(runs: Sequence[RunData]) -> list[Drawn]:
    """One chart a curve that at least two runs have, a line a run."""
    charts: list[Drawn] = []
    for kind in [*ONLINE, *LOSS, *HEALTH, *MORE_HEALTH]:
        for name, label in kind.names.items():
            having = [
                (a, run) for a, run in zip(letters(runs), runs, strict=True) if name in run.curves
            ]
            if len(having) > 1 and not is_part(name):
                charts.append(overlaid(kind, name, label, having, runs, len(charts) + 1))
    return charts


def overlaid(
    kind: Kind, name: str, label: str, having: list[tuple[str, RunData]],
    runs: Sequence[RunData], index: int,
) -> Drawn:  # fmt: skip
    """One curve of several runs; a run has the same colour and dash in every chart."""
    lines = [Line(a, run.curves[name].steps, run.curves[name].values) for a, run in having]
    references = {reference_of(kind.reference, run) for _, run in having}
    reference = references.pop() if len(references) == 1 else None
    title = kind.title if len(kind.names) == 1 else f"{kind.title}: {label}"
    key = f"chart-{index}"
    styles = [letters(runs).index(a) for a, _ in having]
    chart = Chart(
        title, lines, reference, bounds=kind.bounds, described_by=f"{key}-words", styles=styles
    )
    return Drawn(
        key, title, draw(chart),
        [(sample(s), f"{a}: {run.name}") for s, (a, run) in zip(styles, having, strict=True)],
        told(lines, reference), kind.meaning, [numbers_of(line) for line in lines],
    )  # fmt: skip


def same_evaluation(runs: Sequence[RunData]) -> bool | None:
    """Whether all that are evaluated were on the same images and labels; None below 2 of them."""
    found = [run.evaluation for run in runs if run.evaluation]
    if len(found) < 2:
        return None

    def identity(result: dict[str, Any]) -> str:
        asked = {name: result.get("settings", {}).get(name) for name in EVALUATED}
        return str([asked, result.get("counts"), result.get("patients"), result.get("masks")])

    return len({identity(result) for result in found}) == 1


def scored_of(runs: Sequence[RunData], same_test: bool | None) -> list[Scored]:
    """Each figure that at least one run has, the runs first and then the baselines."""
    having = [(a, run) for a, run in zip(letters(runs), runs, strict=True) if run.evaluation]
    by_key: dict[tuple[str, str, str], dict[str, scores.Score]] = {}
    for letter, run in having:
        for item in scores.comparisons(run.evaluation or {}):
            inner = by_key.setdefault((item.task, item.setting, item.metric), {})
            inner[f"{letter}: {run.name}"] = item.scores[MODEL]
    if having and same_test is not False:
        letter, run = having[0]
        for item in scores.comparisons(run.evaluation or {}):
            for name in ("random", "pixels"):
                if name in item.scores:
                    title = scores.title_of(name) + (f" ({letter}'s)" if name == "random" else "")
                    by_key[(item.task, item.setting, item.metric)][title] = item.scores[name]
    heads: dict[str, Comparison] = {}
    for _, run in having:
        for item in scores.headlines(run.evaluation or {}):
            heads.setdefault(item.task, item)
    first = {(item.task, item.setting, item.metric) for item in heads.values()}
    names = [f"{letter}: {run.name}" for letter, run in having]
    tasks = list(dict.fromkeys(task for task, *_ in by_key))
    by_key = dict(sorted(by_key.items(), key=lambda item: tasks.index(item[0][0])))
    return [
        Scored(Comparison(*key, found), names, against_first(found, names, same_test), key in first)
        for key, found in by_key.items()
    ]


def against_first(
    found: dict[str, scores.Score], runs: Sequence[str], same_test: bool | None
) -> list[str]:
    """Each other run against the first: by how much, and whether it exceeds the intervals."""
    if not same_test:
        return []
    (first, base), *others = [(name, found[name]) for name in runs if name in found]
    words = []
    for name, score in others:
        gain = score.value - base.value
        exceeds = scores.apart(score, base)
        if exceeds is None:
            sure = "no intervals to judge it by"
        else:
            sure = "beyond the intervals" if exceeds else "the intervals overlap: may be chance"
        words.append(f"{name[0]} - {first[0]} = {gain:+.3f} ({sure}).")
    return words


def compare_page(paths: Sequence[Path], out: Path) -> None:
    """Write the comparison as a page.

    Raises: UserError as `compare`, or if the file cannot be written.
    """
    result = compare(paths, hide_paths=True)
    first = [item for item in result.scored if item.headline]
    more = [item for item in result.scored if not item.headline]
    write_page(render("compare.html", page=result, first=first, more=more), out)
