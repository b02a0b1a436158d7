"""A run on the terminal while it trains: what matters first, in one line or in two."""

import time
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dino_x.progress import duration
from dino_x.training.step.passes import Passes

BAR = 12  # columns
GAP = "  "


@dataclass
class Display:
    """What is shown of a run.

    Attributes:
        steps: the run has.
        first: step after which it began or was resumed.
        done: steps that are done.
        loss: in words; empty before the first step.
        health: a word or two, see ``Health.word``.
        details: the other figures.
        passes: how far the step that is under way is.
        doing: what is done after its passes; empty during them.
        began: when the first step began.
    """

    steps: int
    first: int = 0
    done: int = 0
    loss: str = ""
    health: str = ""
    details: list[str] = field(default_factory=list)
    passes: Passes = field(default_factory=Passes)
    doing: str = ""
    began: float = field(default_factory=time.monotonic)

    def step_done(self, done: int, loss: str, health: str, details: list[str]) -> None:
        """Take up what a finished step found."""
        self.done, self.loss, self.health, self.details = done, loss, health, details
        self.passes, self.doing = Passes(), ""

    @property
    def left(self) -> str:
        """The time that is left, in words; nothing before that can be said."""
        done = self.done - self.first + self.passes.share
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self.began) / done
        return f"{duration(seconds * (self.steps - self.first - done))} left"

    @property
    def first_part(self) -> str:
        """Step, time left and loss."""
        return GAP.join(filter(None, [f"step {self.done}/{self.steps}", self.left, self.loss]))

    @property
    def health_or_not_yet(self) -> str:
        """The health, or that there is none yet."""
        return self.health or ("" if self.done > self.first else "first step")

    @property
    def rest(self) -> str:
        """Where the step is, and the other figures."""
        return GAP.join(filter(None, [self.doing or self.passes.text, *self.details]))

    @property
    def text(self) -> str:
        """All of it, for a log."""
        return GAP.join(filter(None, [self.first_part, self.health_or_not_yet, self.rest]))

    def lines(self, width: int) -> tuple[str, str]:
        """What stands in the first line, and what in the second; one is empty if all fits."""
        if len(self.text) <= width:
            return self.text, ""
        essential = GAP.join(filter(None, [self.first_part, self.health_or_not_yet]))
        if len(essential) <= width:
            return essential, self.rest
        return self.first_part, GAP.join(filter(None, [self.health_or_not_yet, self.rest]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line where all fits, else two that are cut at the end; a bar if there is room."""
        width = options.max_width
        with_bar = width - BAR - len(GAP) - 1
        first, second = self.lines(with_bar)
        has_bar = len(first) <= with_bar
        if not has_bar:
            first, second = self.lines(width)
        texts = [Text(line, no_wrap=True, overflow="ellipsis") for line in (first, second) if line]
        if has_bar:
            grid = Table.grid(padding=(0, len(GAP), 0, 0))
            done = self.done + self.passes.share
            grid.add_row(ProgressBar(total=self.steps, completed=done, width=BAR), texts[0])
            yield grid
            yield from texts[1:]
        else:
            yield from texts
