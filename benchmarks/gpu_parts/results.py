"""The results of gpu.py: a JSON line each, in the file as soon as it is known.

A line names its ``part`` and ``what`` was looked at. It has either ``found`` (in words, with the
numbers in ``values``), what was ``wanted`` and whether that ``holds`` (None where nothing is
promised), or the reason why it was ``skipped``. A line with ``machine`` says on what all is run.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class SkippedError(Exception):
    """Something that cannot be measured on this machine; the message says why, in one line."""


class Results:
    """What one part writes.

    Args:
        path: the file of lines; it is added to.
        part: the part's name.
        seconds: that the part has in all.
    """

    def __init__(self, path: Path, part: str, seconds: float) -> None:
        self.path, self.part = path, part
        self.deadline = time.monotonic() + seconds
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def machine(self, described: dict[str, str]) -> None:
        """The machine and the versions of what runs on it."""
        self._write({"machine": described})

    def check(self, what: str, value: float, *, below: float = 0.0, above: float = 0.0) -> None:
        """A number that has to be below or above another; exactly 0 if neither is given."""
        if above:
            wanted, holds = f"> {above:g}", value > above
        elif below:
            wanted, holds = f"< {below:g}", value < below
        else:
            wanted, holds = "0", value == 0
        self.found(what, f"{value:.2g}", wanted, holds, difference=value)

    def found(
        self, what: str, found: str, wanted: str = "", holds: bool | None = None, **values: Any
    ) -> None:
        """Anything else that was measured.

        Args:
            what: was looked at.
            found: in words.
            wanted: in words.
            holds: whether the one is as good as the other.
            values: the numbers.
        """
        self._write(
            {"part": self.part, "what": what, "found": found, "wanted": wanted, "holds": holds,
             "values": values}
        )  # fmt: skip

    def skipped(self, what: str, why: str) -> None:
        """What was not measured."""
        self._write({"part": self.part, "what": what, "skipped": why})

    def attempt(self, what: str, measure: Callable[[], None], needs: float = 0.0) -> None:
        """Measure one thing; if that cannot be done it is a line that says why, and all else runs.

        Args:
            what: is measured.
            measure: does it.
            needs: seconds that it takes, about; with fewer left it is not begun.
        """
        self.started = time.monotonic()
        if self.left < needs:
            self.skipped(what, f"no time is left for it: it takes about {max(1.0, needs):.0f} s")
            return
        try:
            measure()
        except SkippedError as error:
            self.skipped(what, str(error))
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            first = lines[0] if lines else type(error).__name__
            self.found(what, f"failed: {type(error).__name__}: {first}", "", False)

    def each(self, items: dict[str, Callable[[], None]], needs: float = 0.0) -> None:
        """Measure one thing after the other; see ``attempt``."""
        for what, measure in items.items():
            self.attempt(what, measure, needs)

    def _write(self, line: Line) -> None:
        line["seconds"] = round(time.monotonic() - self.started, 2)
        append(self.path, line)


def append(path: Path, line: Line) -> None:
    """Add a line to a file, so that it is there even if the machine is gone the moment after."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Line]:
    """The lines of a file; a last one that was cut is left out."""
    if not path.exists():
        return []
    whole = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in whole]
