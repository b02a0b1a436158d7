"""The progress of a run: a bar, metrics.jsonl and TensorBoard, with the same numbers."""

import contextlib
import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dino_x.progress import LINE_SECONDS, duration
from dino_x.runs.append_only import GrowingFile, json_line
from dino_x.runs.folder import RunFolder
from dino_x.runs.tensorboard import TensorBoardFile


class TrainingReport:
    """Writes each step's metrics and shows them; a full disk costs TensorBoard's file at most."""

    def __init__(
        self, run: RunFolder, console: Console, steps: int, done: int, prototypes: int
    ) -> None:
        self.console = console
        self.steps = steps
        self.log_prototypes = math.log(prototypes)
        self.run = run
        self.warned = False  # that something cannot be written
        self.file = GrowingFile(run.metrics, self.warn)
        self.tensorboard = TensorBoardFile(run.tensorboard, done, self.finding)
        self.started = self.last_line = time.monotonic()
        self.first_step = done
        self.online = ""
        self.progress = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("", total=steps, completed=done, numbers="starting")

    def step(self, values: dict[str, Any], health: str = "") -> None:
        """Record one finished step, and show it with ``health`` in a word or two.

        ``values["step"]`` counts from 1.
        """
        self.online = online_summary(values) or self.online
        self.file.append(json_line(values))
        self.tensorboard.step(values)
        self.warned = bool(self.file.waiting)
        parts = [self.summary(values), self.online, health]
        numbers = "  ".join(filter(None, parts))
        self.progress.update(self.task, completed=values["step"], numbers=numbers)
        now = time.monotonic()
        due = now - self.last_line > LINE_SECONDS or values["step"] == self.steps
        if due and not self.console.is_terminal:
            left = (now - self.started) / (values["step"] - self.first_step)
            left *= self.steps - values["step"]
            self.say(f"step {values['step']}/{self.steps}  {numbers}  {duration(left)} left")
            self.last_line = now

    def went_back(self, done: int) -> None:
        """Continue after ``done`` steps; metrics.jsonl was cut there."""
        self.file.waiting.clear()
        self.file.close()
        self.tensorboard.close()
        self.tensorboard = TensorBoardFile(self.run.tensorboard, done, self.finding)
        self.first_step = min(self.first_step, done)

    def warn(self, line: str) -> None:
        """Say what cannot be written, once until all of it could be."""
        if not self.warned:
            self.warned = True
            self.finding(line)

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line; an error is ignored, as the screen may be a file on a full disk."""
        with contextlib.suppress(OSError):
            self.console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    def summary(self, values: dict[str, Any]) -> str:
        """The loss terms beside log K, the speed and the memory of a step in words."""
        if "skipped" in values:
            return f"skipped  {values['memory_gib']:.1f} GiB"
        terms = [
            f"{n} {values[n]:.3f}"
            for n in ("dino", "ibot", "koleo", "sigreg", "gram")
            if n in values
        ]
        return (
            f"loss {values['loss']:.3f} ({', '.join(terms)}; log K {self.log_prototypes:.2f})"
            f"  {values['images_per_second']:.1f} img/s  {values['memory_gib']:.1f} GiB"
        )

    def finding(self, text: str) -> None:
        """Say what health found, as a paragraph of its own."""
        self.say(text, "yellow")

    def __enter__(self) -> "TrainingReport":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.progress.stop()
        self.file.flush()
        self.file.close()
        self.tensorboard.close()


class NoReport:
    """A report that writes nothing, for the other ranks of a run."""

    def step(self, values: dict[str, Any], health: str = "") -> None:
        """Say nothing."""

    def finding(self, text: str) -> None:
        """Say nothing."""

    def went_back(self, done: int) -> None:
        """Say nothing."""


def online_summary(values: dict[str, Any]) -> str:
    """``kNN 0.78`` or ``retrieval 34.2%``, or nothing for a step without an online evaluation."""
    if "online/knn_balanced_accuracy" in values:
        return f"kNN {values['online/knn_balanced_accuracy']:.3f}"
    if "online/retrieval_top1" in values:
        return f"retrieval {100 * values['online/retrieval_top1']:.1f}%"
    return ""
