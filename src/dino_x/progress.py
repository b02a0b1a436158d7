"""How far something is that takes a while and says (done, total): a bar, or lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 10.0  # between lines where there is no terminal for a bar

Told = Callable[[int, int], None]


@contextmanager
def progress_bar(console: Console, what: str, done_before: int = 0) -> Iterator[Told]:
    """Shows a bar while the block runs, and a line now and then where there is no terminal.

    Args:
        console: where to show it; a quiet one shows nothing.
        what: is being done, such as ``evaluating``.
        done_before: how much was done when the block began, for the time that is left.
    """
    if not console.is_terminal:
        yield Lines(console, what, done_before)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, completed=done_before)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Lines:
    """Says how far it is at most every ten seconds, for a log.

    Args:
        console: where to say it.
        what: is being done.
        done_before: how much was done before.
    """

    def __init__(self, console: Console, what: str, done_before: int = 0) -> None:
        self.console, self.what, self.done_before = console, what, done_before
        self.began = self.last = time.monotonic()
        self.done = 0

    def __call__(self, done: int, total: int) -> None:
        """Take that so much of so much is done."""
        now = time.monotonic()
        if done < self.done:  # another round of the same work
            self.began, self.done_before = now, 0
        self.done = done
        if now - self.last < LINE_SECONDS or not total:
            return
        self.last = now
        left = ""
        if done > self.done_before:
            seconds = (now - self.began) / (done - self.done_before) * (total - done)
            left = f", {duration(seconds)} left"
        line = f"{self.what}: {done:,} of {total:,}{left}"
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def duration(seconds: float) -> str:
    """A duration in words, such as ``2 h 05 min``, ``3 min 10 s`` or ``12 s``."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


def roughly(seconds: float) -> str:
    """An estimated duration in words, to two digits.

    >>> roughly(12), roughly(214), roughly(77_000), roughly(400_000)
    ('less than a minute', '4 min', '21 h', '4.6 days')
    """
    if seconds < 60:
        return "less than a minute"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86_400:
        return f"{seconds / 3600:.2g} h"
    return f"{seconds / 86_400:,.1f} days"
