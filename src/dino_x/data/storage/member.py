"""An image file inside an archive, as a path that readers open like any other.

``ct-000.tar/case-1/7.dcm`` is the member ``case-1/7.dcm`` of ``ct-000.tar``: an archive looks like
a folder, so that labels, `skipped.csv` and conditions name its images as they name files.

A member is a `Path` and not an object beside one. Its images sort among files, lie below folders
and are keys as files are, and a second object for each of them would take 88 more bytes of memory.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dino_x.data.image import ImageRef
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import (
    Archive,
    address,
    is_remote,
    location,
    opened_span,
    read_range,
    reader_of,
)

# Larger members of object stores are not fetched as a whole: decoders read them in blocks.
WHOLE_UP_TO = 16 * 2**20

_Path = type(Path())


@lru_cache(maxsize=1024)  # members of one archive share one object
def _moved(archive: Archive, path: Path) -> Archive:
    return Archive(path, archive.size, archive.mtime_ns, archive.etag)


class Address(_Path):  # type: ignore[misc, valid-type]
    """A path that may be the address of an object, and is then shown as an address."""

    __slots__ = ()

    def __str__(self) -> str:
        return address(super().__str__())


class Member(Address):
    """A file inside an archive.

    Args:
        path: the archive's path with the member's name below it.
        archive: the archive that it lies in.
        offset: where its bytes begin in a tar; -1 in a Parquet file.
        length: the number of its bytes in a tar; -1 in a Parquet file.
        row_group: its row group in a Parquet file; -1 in a tar.
        row: its row within the row group.
        content: its bytes, or a function that opens them, if they are at hand.
    """

    __slots__ = ("archive", "content", "length", "offset", "row", "row_group")

    def __new__(cls, path: Path | str, *place: Any, **named: Any) -> Member:
        """Make the path; `__init__` adds the place in the archive."""
        member: Member = super().__new__(cls, path)
        return member

    def __init__(
        self,
        path: Path | str,
        archive: Archive,
        offset: int = -1,
        length: int = -1,
        row_group: int = -1,
        row: int = -1,
        content: Any = None,
    ) -> None:
        if _TAKES_SEGMENTS:
            super().__init__(path)
        self.archive, self.offset, self.length = archive, offset, length
        self.row_group, self.row, self.content = row_group, row, content

    def __reduce__(self) -> Any:
        place = (self.archive, self.offset, self.length, self.row_group, self.row)
        content = self.content if isinstance(self.content, bytes) else None
        return Member, (os.fspath(self), *place, content)

    def with_segments(self, *segments: str | Path) -> Path:
        """Make a parent or a child of this path, which is not a member."""
        return Address(*segments)

    @property
    def parent(self) -> Path:
        """The folder that it seems to lie in, which is not a member."""
        return Address(*self.parts[:-1])

    @property
    def name_inside(self) -> str:
        """The name of the member in its archive."""
        return "/".join(self.parts[len(self.archive.path.parts) :])

    def moved(self, archive: Path) -> Member:
        """The same member, where its archive has another path."""
        if archive == self.archive.path:
            return self
        return self._with(None, _moved(self.archive, archive))

    def holding(self, content: Any) -> Member:
        """The same member with its bytes, or a function that opens them, at hand."""
        return self._with(content, self.archive)

    def _with(self, content: Any, archive: Archive) -> Member:
        place = (self.offset, self.length, self.row_group, self.row)
        return Member(archive.path / self.name_inside, archive, *place, content)

    def fetched(self) -> Member:
        """The same member with its bytes at hand, unless it is large.

        Raises: Unreadable, UserError.
        """
        large = self.row_group < 0 and self.length > WHOLE_UP_TO
        if large or self.content is not None:
            return self
        return self.holding(self.load())

    def load(self) -> bytes:
        """All its bytes. Raises Unreadable, UserError."""
        if isinstance(self.content, bytes):
            return self.content
        if self.row_group >= 0:
            return row_groups.read_row(self.archive, self.row_group, self.row)
        return read_range(self.archive, self.offset, self.length)

    def open(self, *_: Any, **__: Any) -> Any:
        """Open the member as a binary file for reading. Raises Unreadable, UserError."""
        if callable(self.content):
            return self.content()
        if self.content is None and self.row_group < 0:
            return opened_span(reader_of(self.archive), self.offset, self.length)
        return io.BytesIO(self.load())


# From Python 3.12 on paths take their segments in `__init__`.
_TAKES_SEGMENTS = "__init__" in vars(Path) or any("__init__" in vars(b) for b in Path.__mro__[:-1])


def as_path(text: str | Path) -> Path:
    """A path on a disk, or an address that is shown as an address."""
    if not is_remote(text):
        return Path(text)
    scheme, _, rest = address(text).partition("://")
    return Path("/", rest) if scheme == "file" else Address(text)


def plain_name(name: str) -> str:
    """The name of a member without parts that would lead out of its archive.

    >>> plain_name("./a/1.png"), plain_name("/b//2.png"), plain_name("../../3.png")
    ('a/1.png', 'b/2.png', '3.png')
    """
    return posixpath.normpath("/" + name).lstrip("/")


def file_of(path: Path) -> Path:
    """The archive of a member; any other path as it is."""
    return path.archive.path if isinstance(path, Member) else path


def at_hand(ref: ImageRef) -> ImageRef:
    """An image with the bytes of its file at hand, if that is a member and not large.

    It can then be decoded by a process that cannot reach the archive.

    Raises: Unreadable, UserError.
    """
    if not isinstance(ref.path, Member):
        return ref
    return replace(ref, path=ref.path.fetched())


def any_remote(rows: Sequence[ImageRef]) -> bool:
    """Whether any image lies in an object store."""
    archives = {
        id(row.path.archive): row.path.archive for row in rows if isinstance(row.path, Member)
    }
    return any(is_remote(archive.path) for archive in archives.values())


def rows_in_row_groups(rows: Sequence[ImageRef]) -> list[int]:
    """The numbers of the images that lie in Parquet files, in the order in which they lie there."""
    inside = []
    for number, row in enumerate(rows):
        member = row.path
        if isinstance(member, Member) and member.row_group >= 0:
            place = (str(member.archive.path), member.row_group, member.row, row.frame)
            inside.append((place, number))
    return [number for _, number in sorted(inside)]


def size_of(path: Path) -> int:
    """The number of bytes of a file or of a member. Raises OSError."""
    if not isinstance(path, Member):
        return path.stat().st_size
    return path.length if path.row_group < 0 else len(path.load())


def version_of(path: Path) -> str | None:
    """A text that is of this file in this state alone; None if the file is not there.

    The state of a member is that of its archive when it was looked through.
    """
    if isinstance(path, Member):
        archive = path.archive
        place = f"{path.offset}|{path.length}|{path.row_group}|{path.row}"
        return f"{whereabouts(path)}|{archive.size}|{archive.mtime_ns}|{archive.etag}|{place}"
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}"


def whereabouts(path: Path) -> str:
    """Where a file or member really is, with links resolved, as a text that is its alone."""
    if isinstance(path, Member):
        return f"{_real(path.archive.path)}/{path.name_inside}"
    return os.path.realpath(path)


@lru_cache(maxsize=1024)
def _real(archive: Path) -> str:
    return location(archive) if is_remote(archive) else os.path.realpath(archive)
