"""What goes to a terminal: text as it is, and names of files that cannot do anything there."""

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

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
