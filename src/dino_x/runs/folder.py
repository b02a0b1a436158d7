"""The RUN folder: settings, metrics, checkpoints, the model."""

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dino_x.config.options import Options
from dino_x.config.presets import check, dotted, read_config
from dino_x.data.image import DEFAULT, Reading
from dino_x.errors import UserError
from dino_x.files import parse_json, read_text, write_json, write_text
from dino_x.model.pretrained import reading_stated, split_name
from dino_x.runs import checkpoint
from dino_x.runs.lock import NAME as LOCK
from dino_x.runs.lock import RunLock
from dino_x.runs.train_log import NAME as TRAIN_LOG
from dino_x.runs.train_log import TrainLog

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
ENVIRONMENT = "environment.json"
HEALTH = "health.jsonl"  # only there if health found something

# What runs did before there was an option for it: a run that goes on keeps its batches.
BEFORE: dict[str, Any] = {"data.label_patients": False}


class RunFolder:
    """Where everything about a run is, and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.evaluation = path / "evaluation.json"
        self.skipped = path / "skipped.csv"
        self.facts = path / "facts.json"
        self.metrics = path / METRICS
        self.origin = path / "origin.json"
        self.snapshots = path / "snapshots"
        self.report = path / "report.html"
        self.health = path / HEALTH
        self.micro_batch = path / "micro_batch.json"
        self.trained_on = path / "trained_on.keys"
        self.split = path / "split.csv"
        self.settings_file = path / CONFIG
        self.logged = path / "logger.json"
        self.environment = path / ENVIRONMENT
        self.lock = RunLock(path)
        self.log = TrainLog(path / TRAIN_LOG)

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.settings_file.is_file()

    def refuse_if_taken(self) -> None:
        """Raise UserError if there is something here that a new run would overwrite."""
        if self.exists:
            raise UserError(
                f"{self.path} already holds a run; continue with --resume, or choose another --out"
            )
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is a file; --out takes a folder")
        self.lock.refuse_if_held()
        foreign = [file.name for file in self.path.iterdir() if not self._is_of_a_start(file)]
        if self.checkpoints.name in foreign:
            raise UserError(
                f"{self.path} holds checkpoints but no {CONFIG}, without which no run can be"
                " resumed: put it back, or choose another --out"
            )
        if foreign:
            raise UserError(f"{self.path} is not empty and holds no run; choose another --out")

    def _is_of_a_start(self, file: Path) -> bool:
        """Whether a file is what a run leaves that ended before its settings were written."""
        names = (self.facts.name, ENVIRONMENT, TRAIN_LOG, LOCK)
        return file.name in names or file.name.endswith(".partial")

    def hold(self) -> None:
        """Make the folder if it is not there, and keep other processes from writing into it.

        Raises: UserError if another process has it, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.take()
            self.log.begin()
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def create(self, options: Options, facts: dict[str, Any]) -> None:
        """Make the folder, and write its settings and its facts.

        Args:
            options: of the run.
            facts: what the run met, such as how many images there were.

        Raises: UserError if the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.facts, facts)
            self.write_settings(options)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}") from error

    def write_settings(self, options: Options) -> None:
        """Write the options as they were resolved. Raises OSError."""
        text = (
            "# Every option of this run as it was resolved. To repeat it:\n"
            f"#   dino-x pretrain --config {CONFIG} --out ANOTHER_FOLDER\n"
            + yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False)
        )
        write_text(self.settings_file, text)

    def lengthen(self, options: Options, done: int) -> None:
        """Keep the new number of steps of a run that goes on for longer, and note it.

        Args:
            options: of the run now.
            done: the step after which it goes on.
        """
        before, now = self.settings().get("train.steps"), options.train.steps
        if before == now:
            return
        facts = self.read_facts()
        longer = {"after": done, "from": before, "to": now}
        write_json(self.facts, facts | {"lengthened": [*facts.get("lengthened", []), longer]})
        self.write_settings(options)

    def read_facts(self) -> dict[str, Any]:
        """What the run met, such as ``images`` and ``device``; empty if that cannot be read.

        Runs of before facts.json have it in ``# name: value`` lines at the top of their settings.
        """
        try:
            if self.facts.is_file():
                return dict(parse_json(read_text(self.facts)))
            text = self.settings_file.read_text(errors="replace")
        except (OSError, ValueError, TypeError):
            return {}
        found: dict[str, Any] = dict(re.findall(r"^# ([^ :]+): (.*)$", text, re.MULTILINE))
        images = found.get("images", "").replace(",", "")
        return found | ({"images": int(images)} if images.isdigit() else {})

    def add_fact(self, name: str, value: Any) -> None:
        """Note something that the run met; a full disk costs the note alone."""
        with contextlib.suppress(OSError):
            write_json(self.facts, self.read_facts() | {name: value})

    def settings(self) -> dict[str, Any]:
        """The run's resolved options as ``section.key`` values; all of them.

        Options that are newer than the run have their defaults, or what runs did before, see
        `BEFORE`.

        Raises: UserError if the file cannot be read, or holds no options.
        """
        values = read_config(self.settings_file)
        if not values:
            raise UserError(
                f"{self.settings_file} holds no options: it is damaged; put it back, or remove it,"
                " and --resume makes it again from the newest checkpoint"
            )
        return dotted(Options().model_dump(mode="json")) | BEFORE | values

    def remove_leftovers(self) -> None:
        """Remove the half-written files of a run that was killed; whole files stay."""
        with contextlib.suppress(OSError):
            for file in self.path.rglob("*.partial"):
                if file.is_dir():
                    shutil.rmtree(file, ignore_errors=True)
                else:
                    file.unlink(missing_ok=True)
            checkpoint.remove_leftovers(self.checkpoints)

    def truncate_metrics(self, steps: int) -> None:
        """Keep the metrics and findings of the first ``steps`` steps; later ones come again."""
        for path in (self.metrics, self.health):
            if path.is_file():
                kept = sum(length for _, length in _whole_lines(path, steps))
                os.truncate(path, kept)  # on a full disk too


def lines(path: Path, steps: int) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines that are about the first ``steps`` steps, in order.

    A null, which stands in the file for NaN or infinity, is NaN.
    """
    for value, _ in _whole_lines(path, steps):
        yield {key: math.nan if v is None else v for key, v in value.items()}


def _whole_lines(path: Path, steps: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Each whole line of such a file as an object, and its length in bytes."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                value = parse_json(line)
                if not line.endswith(b"\n") or value["step"] > steps:
                    return
            except (ValueError, KeyError):
                return  # the half line of a run that was killed while writing
            yield value, len(line)


def run_of(model: str | Path) -> RunFolder:
    """The run that a model is of, which may not exist: RUN, RUN/model or RUN@step-400."""
    at_step = split_name(model)
    if at_step is not None:
        return RunFolder(at_step.run)
    path = Path(model)
    around = RunFolder(path.parent)
    return around if path.name == "model" and around.exists else RunFolder(path)


def reading_of(model: str | Path) -> Reading:
    """How a run read its images, also where its model was exported; else the default."""
    run = run_of(model)
    if run.exists:
        return Reading.of(check(run.settings()).data)
    return reading_stated(Path(model)) if Path(model).is_dir() else DEFAULT


def kinds_taken(model: str | Path) -> tuple[str, ...]:
    """The kinds of images that a run takes although they are left out by default."""
    run = run_of(model)
    return tuple(check(run.settings()).data.take) if run.exists else ()
