"""Headers that are text, and the values in another file that some of them name.

A header names any file that it likes. It is followed only to a plain file in its own folder or
below.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import IO

from dino_x.data.image import Unreadable
from dino_x.data.storage.member import Member

_MOST_HEADER = 2**20  # bytes; those of segmentations have a few KB for each segment
_NUMBERED = re.compile(r"%\d*[diu]")


def header_line(file: IO[bytes], name: str) -> str | None:
    """The next line of a header without its end; None at the end of the file.

    Args:
        file: the file, at the beginning of a line.
        name: of the format.

    Raises: Unreadable for a header that is longer than any.
    """
    line = file.readline(_MOST_HEADER)
    if file.tell() > _MOST_HEADER:
        raise Unreadable(f"damaged {name} header: it has no end")
    return line.decode("latin-1").rstrip("\r\n") if line else None


def data_file(header: Path, named: str, name: str) -> Path:
    """The file of values that a header names.

    Args:
        header: the file of the header.
        named: what it names, relative to its folder.
        name: of the format.

    Raises: Unreadable for several files, for one that is not in the header's folder or below, and
        for one that is missing.
    """
    if named.split()[0].upper() == "LIST" or _NUMBERED.search(named):
        raise Unreadable(f"{name} whose values lie in several files is not supported: join them")
    if isinstance(header, Member):
        raise Unreadable(
            f"{name} whose values lie in another file is not read from an archive: unpack it, or"
            " save header and values as one file"
        )
    parts = PurePosixPath(named.replace("\\", "/")).parts
    if named.startswith(("/", "\\")) or ".." in parts or ":" in named[:2]:
        raise Unreadable(f"its {name} header names values outside its folder: put them beside it")
    path = header.parent.joinpath(*parts)
    try:
        if not path.is_file():
            raise Unreadable("the file of values that its header names is missing")
    except (OSError, ValueError):  # a name that no file can have
        raise Unreadable("the file of values that its header names is missing") from None
    return path


def numbers_of(text: str, name: str, count: int | None = None) -> list[float]:
    """Numbers with blanks in between. Raises Unreadable if they are none, or not so many."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) != (count or len(numbers)):
        raise Unreadable(f"damaged {name} header: its numbers are not valid")
    return numbers


def lengths_of(text: str, name: str, count: int) -> tuple[int, ...]:
    """The lengths of so many axes. Raises Unreadable."""
    lengths = numbers_of(text, name, count)
    if not all(length.is_integer() for length in lengths):
        raise Unreadable(f"damaged {name} header: its numbers are not valid")
    if min(lengths) < 1:
        raise Unreadable("no pixels")
    return tuple(int(length) for length in lengths)


def is_label_map(path: Path) -> bool:
    """Whether a file is named as programs name the label maps that they save.

    >>> is_label_map(Path("Case1.seg.nrrd")), is_label_map(Path("a-label.mha"))
    (True, True)
    """
    stem = path.name.lower().rpartition(".")[0]
    return bool(re.search(r"(\.seg|[-_.]label(s|map)?|[-_]label[-_]map)$", stem))
