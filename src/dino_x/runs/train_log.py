"""RUN/train.log: what a run says on the screen, with the time, from every start of the run."""

import re
from datetime import datetime
from pathlib import Path

from dino_x.runs.append_only import GrowingFile
from dino_x.terminal import Terminal, visible

NAME = "train.log"
_EMPTY = re.compile(r"^\s*$")


class TrainLog:
    """A copy of what is said. A full disk costs lines of it, and no run.

    Args:
        path: of the file. It is made once the run's folder is this process's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before: list[str] = []  # lines that were said before there was a file
        self._file: GrowingFile | None = None
        self._terminal: Terminal | None = None

    def listen(self, terminal: object) -> None:
        """Copy what is printed to a terminal from now on."""
        if isinstance(terminal, Terminal):
            terminal.listener = self.hear
            self._terminal = terminal

    def begin(self) -> None:
        """Make the file, or go on with it."""
        if self._file is None:
            self._file = GrowingFile(self.path)
            for line in self._before:
                self._file.append(line.encode(errors="backslashreplace"))
            self._before = []

    def hear(self, text: str) -> None:
        """Write a text, each line with the time."""
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        for part in text.splitlines():
            if _EMPTY.match(part):
                continue
            line = f"{now}  {visible(part.rstrip())}\n"
            if self._file is None:
                self._before.append(line)
            else:
                self._file.append(line.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Listen no longer, and close the file."""
        if self._terminal is not None:
            self._terminal.listener = None
            self._terminal = None
        if self._file is not None:
            self._file.flush()
            self._file.close()
            self._file = None
