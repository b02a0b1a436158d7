"""What a RUN folder says, of a run that is finished, still training, or was killed."""

import csv
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dino_x.errors import UserError
from dino_x.files import parse_json
from dino_x.runs.evaluation_file import read_evaluation
from dino_x.runs.folder import CONFIG, RunFolder
from dino_x.runs.model_folder import model_step, newest_step

QUIET_SECONDS = 600  # a run that has written nothing for so long is taken for stopped


@dataclass(frozen=True)
class Curve:
    """One number over the run: at which steps it was recorded, and its finite values."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def first(self) -> float:
        """The first value."""
        return float(self.values[0])

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])


@dataclass
class Finding:
    """A state of health with a name, from a step on.

    Attributes:
        state: uniform, point, dimensional, diverging, or another name in training/health/.
        since: the step it began.
        seen: what was seen, a sentence.
        help: settings that may help, the likeliest first.
        until: the step at which it was over; None if it never was.
    """

    state: str
    since: int
    seen: str
    help: list[str] = field(default_factory=list)
    until: int | None = None


@dataclass
class RunData:
    """Everything that is read of a run.

    Attributes:
        path: the RUN folder.
        settings: ``section.key`` values, resolved.
        facts: what the run met, such as ``images`` and ``device``.
        curves: by name as in metrics.jsonl.
        findings: in the order of their beginning; None where health was not watched.
        evaluation: evaluation.json, or None.
        snapshots: files by step.
        checkpoint_step: the step of the newest checkpoint; None without one.
        model_step: the step that the model in ``model`` is of; None without a model.
        skipped: files that could not be read.
        quiet_seconds: since the last step was recorded; None without steps.
    """

    path: Path
    settings: dict[str, Any]
    facts: dict[str, Any]
    curves: dict[str, Curve]
    findings: list[Finding] | None
    evaluation: dict[str, Any] | None
    snapshots: dict[int, Path]
    checkpoint_step: int | None
    model_step: int | None
    skipped: int
    quiet_seconds: float | None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def steps(self) -> int:
        """Steps the run is to take; 0 if its settings do not say."""
        return int(self.settings.get("train.steps") or 0)

    @property
    def done(self) -> int:
        """Steps recorded so far."""
        return max((int(curve.steps[-1]) for curve in self.curves.values()), default=0)

    @property
    def finished(self) -> bool:
        """Whether the last step was taken."""
        return 0 < self.steps <= self.done

    @property
    def unsaved(self) -> bool:
        """Whether the last step was taken, but no checkpoint or no model is of it."""
        if self.checkpoint_step is None:
            return False  # its owner has removed the checkpoints
        return self.finished and (self.model_step or 0) < self.steps

    @property
    def is_training(self) -> bool:
        """Whether a step was recorded lately and more are to come."""
        recent = self.quiet_seconds is not None and self.quiet_seconds < QUIET_SECONDS
        return recent and not self.finished

    @property
    def seconds(self) -> float | None:
        """Time spent in steps, from their speeds; None if it was not recorded."""
        speed = self.curves.get("images_per_second")
        batch = self.settings.get("train.effective_batch")
        if speed is None or not batch:
            return None
        return float((int(batch) / speed.values[speed.values > 0]).sum())

    @property
    def images(self) -> int | None:
        """Images trained on, as the run noted."""
        number = self.facts.get("images")
        return number if type(number) is int else None


def read_run(path: Path) -> RunData:
    """Read a run. Files that are missing or half written are taken as far as they go.

    Raises: UserError if the folder holds no run.
    """
    run = RunFolder(path)
    if not run.exists:
        what = "is not there" if not path.exists() else f"holds no run: there is no {CONFIG} in it"
        raise UserError(f"{path} {what}; name the folder that `dino-x pretrain --out` made")
    curves = read_curves(run.metrics)
    checkpoint_step = newest_step(run)
    return RunData(
        path=path,
        settings=run.settings(),
        facts=run.read_facts(),
        curves=curves,
        findings=read_findings(path / "health.jsonl", curves),
        evaluation=read_evaluation(run.evaluation),
        snapshots={int(file.stem[5:]): file for file in sorted(run.snapshots.glob("step-*.npz"))},
        checkpoint_step=checkpoint_step,
        model_step=step_of_model(run, checkpoint_step),
        skipped=count_rows(run.skipped),
        quiet_seconds=time.time() - run.metrics.stat().st_mtime if curves else None,
    )


def step_of_model(run: RunFolder, newest: int | None) -> int | None:
    """The step of RUN/model; that of the newest checkpoint where an older run does not say."""
    if not (run.model / "config.json").is_file():
        return None
    stated = model_step(run)
    return newest if stated is None else stated


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Each whole object of a file of JSON lines; a line that is half written ends nothing."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def read_curves(metrics: Path) -> dict[str, Curve]:
    """metrics.jsonl by name. A step that is there twice, after a resume, counts as last written."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in json_lines(metrics):
        step = line.pop("step", None)
        if type(step) is not int:
            continue
        for name, value in line.items():
            if is_finite_number(value):
                found[name][step] = float(value)
    return {name: curve_of(values) for name, values in found.items()}


def is_finite_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number, and neither NaN nor infinite."""
    return type(value) in (int, float) and math.isfinite(value)


def curve_of(values: Mapping[int, float]) -> Curve:
    """A curve in the order of its steps."""
    steps = sorted(values)
    return Curve(np.array(steps), np.array([values[step] for step in steps]))


def read_findings(path: Path, curves: dict[str, Curve]) -> list[Finding] | None:
    """health.jsonl, with each state joined to its end; None if no health was measured."""
    if not path.is_file() and not any(name.startswith("health/") for name in curves):
        return None
    findings: list[Finding] = []
    for line in json_lines(path):
        if isinstance(line.get("state"), str) and isinstance(line.get("step"), int):
            add_finding(findings, line)
    return sorted(findings, key=lambda finding: finding.since)


def add_finding(findings: list[Finding], line: Mapping[str, Any]) -> None:
    """Take a line of health.jsonl: a new state, one that is seen again, or the end of one."""
    state, step, since = line["state"], line["step"], line.get("since")
    since = since if isinstance(since, int) else step
    lasting = [one for one in findings if one.state == state and one.until is None]
    if line.get("resolved"):
        for finding in lasting:
            if finding.since == since:
                finding.until = step
        return
    if not lasting:
        lasting = [Finding(state, since, "")]
        findings += lasting
    # If a state is seen again, what was seen last counts.
    lasting[0].seen = str(line.get("seen", "")).rstrip(".")
    lasting[0].help = [str(text).rstrip(".") for text in line.get("help") or []]


def count_rows(path: Path) -> int:
    """Rows of a table of `path,reason`, without its header."""
    if not path.is_file():
        return 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return max(0, sum(1 for _ in csv.reader(file)) - 1)
