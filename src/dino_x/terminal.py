"""What goes to a terminal: text as it is, and names of files that cannot do anything there."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.control import Control
from rich.segment import Segment
from rich.text import Text

# Control characters but for tab and end of line, and bytes of names that are not UTF-8.
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""The text with all that a terminal would obey, or could not write, spelled out.

    >>> visible("a\x1b[31m.png"), visible("caf\udce9")
    ('a\\x1b[31m.png', 'caf\\xe9')
    """
    return _HIDDEN.sub(_spelled, text)


def _spelled(found: re.Match[str]) -> str:
    number = ord(found[0])
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


class Output(io.RawIOBase):
    """A file that a command prints to, and that may come to an end while it works.

    The reader may have gone (``| head``), the disk may be full, the terminal may be closed. The
    work goes on, and what is printed from then on goes nowhere.

    Args:
        descriptor: of the open file.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._ended = False
        self.lost = ""  # why something was lost that somebody would have read

    def write(self, data: Any) -> int:
        """Write, or let it go; the number of bytes."""
        if not self._ended:
            try:
                return os.write(self._descriptor, data)
            except OSError as error:
                self._ended = True
                if error.errno != errno.EPIPE:
                    self.lost = error.strerror or "the file ends"
        return len(data)

    def writable(self) -> bool:
        """Return True: this file can be written."""
        return True

    def fileno(self) -> int:
        """The descriptor of the open file."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)


@contextmanager
def lasting_output() -> Iterator[Output]:
    """A context in which printing never ends a command, and writes any name."""
    if sys.stdout is None:  # closed before we began
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    output = Output(1)
    before: TextIO = sys.stdout
    if before is not sys.__stdout__ or before.closed:  # somebody captures it
        yield output
        return
    before.flush()
    terminal = before.isatty()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=before.encoding, errors="backslashreplace", line_buffering=terminal,
    )  # fmt: skip
    try:
        yield output
    finally:
        sys.stdout.flush()
        sys.stdout = before


COPY_WIDTH = 120  # columns of tables in what a listener hears


class Terminal(Console):
    """A console of rich that takes every text literally: no markup, no codes for emoji.

    Args: those of ``rich.console.Console``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})
        self.listener: Callable[[str], None] | None = None  # hears what is printed, as plain text

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, and tell the listener, if there is one, what has no colours."""
        super().print(*objects, **options)
        if self.listener is None or all(isinstance(part, Control) for part in objects):
            return
        heard = io.StringIO()
        copy = Terminal(file=heard, width=COPY_WIDTH, color_system=None)
        copy.print(*objects, **options)
        self.listener(heard.getvalue())

    def render_str(self, text: str, **options: Any) -> Text:
        """A text as rich shows it, with control characters spelled out."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What rich makes of anything, with control characters of its texts spelled out."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text == visible(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
