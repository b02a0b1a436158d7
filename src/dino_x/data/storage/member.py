"""An image file inside a shard, as a path that readers open like any other.

``ct-000.tar/case-1/7.dcm`` is the member ``case-1/7.dcm`` of ``ct-000.tar``: a shard looks like a
folder, so that labels, `skipped.csv` and conditions name its images as they name files.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dino_x.data.image import ImageRef
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import (
    Archive,
    address,
    is_remote,
    location,
    on_disk,
    opened_span,
    read_range,
    reader_of,
)

# Larger members of object stores are read in blocks, as they are asked for, and not ahead.
WHOLE_UP_TO = 16 * 2**20

_Path = type(Path())


@lru_cache(maxsize=1024)  # members of one shard share it
def _moved(shard: Archive, path: Path) -> Archive:
    return Archive(path, shard.size, shard.mtime_ns, shard.etag)


class Address(_Path):  # type: ignore[misc, valid-type]
    """A path that may be the address of an object, and is shown as one."""

    __slots__ = ()

    def __str__(self) -> str:
        return address(super().__str__())


class Member(Address):
    """A file inside a shard.

    Args:
        path: the shard's with the member's name below it.
        shard: what it lies in.
        offset: of a tar's member, where its bytes begin.
        length: how many they are.
        row_group: of a Parquet file, where there is no offset.
        row: within the row group.
        content: its bytes or what opens them, if they are at hand.
    """

    __slots__ = ("content", "length", "offset", "row", "row_group", "shard")

    def __new__(cls, path: Path | str, *place: Any, **named: Any) -> Member:
        """As of any path."""
        member: Member = super().__new__(cls, path)
        return member

    def __init__(
        self,
        path: Path | str,
        shard: Archive,
        offset: int = -1,
        length: int = -1,
        row_group: int = -1,
        row: int = -1,
        content: Any = None,
    ) -> None:
        if _TAKES_SEGMENTS:
            super().__init__(path)
        self.shard, self.offset, self.length = shard, offset, length
        self.row_group, self.row, self.content = row_group, row, content

    def __reduce__(self) -> Any:
        place = (self.shard, self.offset, self.length, self.row_group, self.row)
        content = self.content if isinstance(self.content, bytes) else None
        return Member, (os.fspath(self), *place, content)

    def with_segments(self, *segments: str | Path) -> Path:
        """What parents and children are: no members."""
        return Address(*segments)

    @property
    def parent(self) -> Path:
        """The folder it seems to lie in, which is no member."""
        return Address(*self.parts[:-1])

    @property
    def name_inside(self) -> str:
        """What it is called in its shard."""
        return "/".join(self.parts[len(self.shard.path.parts) :])

    def moved(self, shard: Path) -> Member:
        """The same member where its shard is called otherwise."""
        return self if shard == self.shard.path else self._with(None, _moved(self.shard, shard))

    def holding(self, content: Any) -> Member:
        """The same member with its bytes, or what opens them, at hand."""
        return self._with(content, self.shard)

    def _with(self, content: Any, shard: Archive) -> Member:
        place = (self.offset, self.length, self.row_group, self.row)
        return Member(shard.path / self.name_inside, shard, *place, content)

    def fetched(self) -> Member:
        """With its bytes at hand, unless they are many. Raises Unreadable, UserError."""
        if self.content is not None or (self.row_group < 0 and self.length > WHOLE_UP_TO):
            return self
        return self.holding(self.load())

    def load(self) -> bytes:
        """All its bytes. Raises Unreadable, UserError."""
        if isinstance(self.content, bytes):
            return self.content
        if self.row_group >= 0:
            return row_groups.read_row(self.shard, self.row_group, self.row)
        return read_range(self.shard, self.offset, self.length)

    def open(self, *_: Any, **__: Any) -> Any:
        """The member as a binary file, for reading. Raises Unreadable, UserError."""
        if callable(self.content):
            return self.content()
        if self.content is None and self.row_group < 0:
            return opened_span(reader_of(self.shard), self.offset, self.length)
        return io.BytesIO(self.load())


# From Python 3.12 on paths take their segments in `__init__`.
_TAKES_SEGMENTS = "__init__" in vars(Path) or any("__init__" in vars(b) for b in Path.__mro__[:-1])


def as_path(text: str | Path) -> Path:
    """A path, or an address that is shown as one."""
    if not is_remote(text):
        return Path(text)
    scheme, _, rest = address(text).partition("://")
    return Path("/", rest) if scheme == "file" else Address(text)


def plain_name(name: str) -> str:
    """The name of a member without what would lead out of its shard.

    >>> plain_name("./a/1.png"), plain_name("/b//2.png"), plain_name("../../3.png")
    ('a/1.png', 'b/2.png', '3.png')
    """
    return posixpath.normpath("/" + name).lstrip("/")


def file_of(path: Path) -> Path:
    """The file that a path lies in: its shard, or itself."""
    return path.shard.path if isinstance(path, Member) else path


def fetched(path: Path) -> Path:
    """A member with its bytes at hand, unless they are many; a file as it is."""
    return path.fetched() if isinstance(path, Member) else path


def any_remote(rows: Sequence[ImageRef]) -> bool:
    """Whether any image lies in an object store."""
    shards = {id(row.path.shard): row.path.shard for row in rows if isinstance(row.path, Member)}
    return any(is_remote(shard.path) for shard in shards.values())


def rows_in_row_groups(rows: Sequence[ImageRef]) -> list[int]:
    """The images that lie in Parquet files, in the order in which they lie there."""
    inside = [
        (str(row.path.shard.path), row.path.row_group, row.path.row, row.frame, number)
        for number, row in enumerate(rows)
        if isinstance(row.path, Member) and row.path.row_group >= 0
    ]
    return [number for *_, number in sorted(inside)]


def size_of(path: Path) -> int:
    """Bytes of a file or of a member. Raises OSError."""
    if isinstance(path, Member):
        return path.length if path.row_group < 0 else len(path.load())
    return path.stat().st_size


def version_of(path: Path) -> str | None:
    """What tells a file from others and from what it was before; None if it is not there.

    Of a member it is what its shard was like when it was looked through.
    """
    if isinstance(path, Member):
        shard = path.shard
        place = f"{path.offset}|{path.length}|{path.row_group}|{path.row}"
        return f"{whereabouts(path)}|{shard.size}|{shard.mtime_ns}|{shard.etag}|{place}"
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{os.path.abspath(path)}|{status.st_size}|{status.st_mtime_ns}"


def whereabouts(path: Path) -> str:
    """Where a file or member really is, links followed, as a text that is its alone."""
    if isinstance(path, Member):
        return f"{_real(path.shard.path)}/{path.name_inside}"
    return os.path.realpath(path)


@lru_cache(maxsize=1024)
def _real(shard: Path) -> str:
    return location(shard) if is_remote(shard) else os.path.realpath(shard)


def mapped(path: Path, dtype: np.dtype | type, offset: int, shape: tuple[int, ...], order: Any):  # type: ignore[no-untyped-def]
    """Values of a file: mapped where it is on a disk, else read. Raises OSError, ValueError."""
    if isinstance(path, Member):
        if path.row_group >= 0 or is_remote(path.shard.path) or path.content is not None:
            count = int(np.prod(shape))
            values = np.frombuffer(path.load(), dtype, count, offset)
            return values.reshape(shape, order=order)
        file: Any = on_disk(path.shard)
        return np.memmap(file, dtype, "r", path.offset + offset, shape, order)
    return np.memmap(path, dtype, "r", offset, shape, order)
