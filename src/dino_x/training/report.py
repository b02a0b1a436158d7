"""The progress of a run: a bar, metrics.jsonl and TensorBoard, with the same numbers."""

import contextlib
import math
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from dino_x.progress import LINE_SECONDS
from dino_x.runs.append_only import GrowingFile, json_line
from dino_x.runs.folder import RunFolder
from dino_x.runs.tensorboard import TensorBoardFile
from dino_x.training.display import Display
from dino_x.training.loggers import Logger, NoLogger
from dino_x.training.step.passes import Passes

LINE_SECONDS_WITHIN = 60.0  # between lines of a log within a step
TERMS = ("dino", "ibot", "koleo", "sigreg", "gram")


class TrainingReport:
    """Writes each step's metrics and shows them; a full disk costs TensorBoard's file at most."""

    def __init__(
        self,
        run: RunFolder,
        console: Console,
        steps: int,
        done: int,
        prototypes: int,
        logger: Logger | None = None,
    ) -> None:
        self.console = console
        self.steps = steps
        self.log_prototypes = math.log(prototypes)
        self.run = run
        self.warned = False  # that something cannot be written
        self.file = GrowingFile(run.metrics, self.warn)
        self.tensorboard = TensorBoardFile(run.tensorboard, done, self.finding)
        self.logger = logger or NoLogger()
        self.last_line = time.monotonic()
        self.online = ""
        self.display = Display(steps, first=done, done=done)
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(self.display, console=console)

    def step(self, values: dict[str, Any], health: str = "") -> None:
        """Record one finished step, and show it with ``health`` in a word or two.

        ``values["step"]`` counts from 1.
        """
        self.online = online_summary(values) or self.online
        self.file.append(json_line(values))
        self.tensorboard.step(values)
        self.logger.step(values["step"], values)
        self.warned = bool(self.file.waiting)
        loss, details = self.summary(values)
        self.display.step_done(values["step"], loss, health, [self.online, *details])
        self.line(every=LINE_SECONDS, last=values["step"] == self.steps)

    def within(self, passes: Passes) -> None:
        """Show how far the step under way is; in a log, if it takes long."""
        self.display.passes, self.display.doing = passes, ""
        self.line(every=LINE_SECONDS_WITHIN)

    def doing(self, what: str) -> None:
        """Show what is done between two steps."""
        self.display.doing = what
        self.line(every=LINE_SECONDS_WITHIN)

    def line(self, every: float, last: bool = False) -> None:
        """Write what is shown as a line, not too often: to train.log, and to where no bar is."""
        now = time.monotonic()
        if not last and now - self.last_line <= every:
            return
        self.last_line = now
        if self.live is None:
            self.say(self.display.text)
        else:
            self.run.log.hear(self.display.text)

    def went_back(self, done: int) -> None:
        """Continue after ``done`` steps; metrics.jsonl was cut there."""
        self.file.waiting.clear()
        self.file.close()
        self.tensorboard.close()
        self.tensorboard = TensorBoardFile(self.run.tensorboard, done, self.finding)
        self.display.first = min(self.display.first, done)

    def warn(self, line: str) -> None:
        """Say what cannot be written, once until all of it could be."""
        if not self.warned:
            self.warned = True
            self.finding(line)

    def say(self, line: str, style: str | None = None) -> None:
        """Print a line; an error is ignored, as the screen may be a file on a full disk."""
        with contextlib.suppress(OSError):
            self.console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)

    def summary(self, values: dict[str, Any]) -> tuple[str, list[str]]:
        """The loss of a step in words; and its terms beside log K, the speed and the memory."""
        memory = f"{values['memory_gib']:.1f} GiB"
        if "skipped" in values:
            return "skipped", [memory]
        terms = [f"{name} {values[name]:.3f}" for name in TERMS if name in values]
        speed = f"{values['images_per_second']:.1f} img/s"
        log_k = f"log K {self.log_prototypes:.2f}"
        return f"loss {values['loss']:.3f}", [speed, memory, *terms, log_k]

    def finding(self, text: str) -> None:
        """Say what health found, as a paragraph of its own."""
        self.say(text, "yellow")

    def __enter__(self) -> "TrainingReport":
        self.display.began = time.monotonic()
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.live is not None:
            self.live.stop()
        self.file.flush()
        self.file.close()
        self.tensorboard.close()
        self.logger.close()


class NoReport:
    """A report that writes nothing, for the other ranks of a run."""

    def within(self, passes: Passes) -> None:
        """Say nothing."""

    def doing(self, what: str) -> None:
        """Say nothing."""

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
