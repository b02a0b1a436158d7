"""The files in a tar: regular ones, and those that links in it lead to."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from dino_x.data.image import Unreadable
from dino_x.data.storage.archives import (
    Archive,
    Read,
    none_lost,
    opened_span,
    raise_lost,
    reader_of,
)
from dino_x.data.storage.member import Member, plain_name
from dino_x.errors import UserError

PACKED = (
    "a compressed tar has to be unpacked up to each image: unpack it (gunzip, or zstd -d) to a"
    " .tar; images are compressed anyway"
)
NO_TAR = "not a tar but"  # how the reason begins for another file of that name
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_BLOCK = 512  # bytes: a tar consists of such blocks
_LONGEST_NAME = 2**20  # bytes of a header that holds a long name, or other facts of a member
# So many zeros may follow the end of a tar: records of GNU tar have 10 KB, of tapes up to 1 MB.
_MOST_ZEROS = 2**20

_SPARSE = "a file with holes, as `tar --sparse` packs it, is not read: pack it without"
_LINK = "a link in a tar to a file that is not in it: pack what it leads to (tar --dereference)"


class _TarInfo(tarfile.TarInfo):
    """A header of a tar that can lead neither backwards nor into memory without end."""

    # Python before 3.11.14 and 3.13.6 goes back to the header itself, for ever, where its size is
    # below 0 (CVE-2025-8194), and reads a header of any size as a whole.
    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        facts = not (self.isreg() or self.isdir() or self.issparse())
        if self.size < 0 or (facts and self.size > _LONGEST_NAME):
            raise tarfile.ReadError("a size that cannot be")
        return super()._proc_member(tar)  # type: ignore[misc]


@dataclass
class _Links:
    """The links of a tar, each with the name that it leads to, by the names in the tar."""

    hard: list[tuple[str, str]] = field(default_factory=list)
    symbolic: list[tuple[str, str]] = field(default_factory=list)


def tar_members(archive: Archive) -> Iterator[Member]:
    """The files of a tar. Its headers are read; what is between them is skipped.

    A hard link is the file that it leads to, under its own name. A symbolic link to a file in the
    tar is that file, which comes once. Opening any other link, or a sparse file, raises Unreadable.

    Raises: Unreadable if the rest of the tar cannot be read; UserError.
    """
    links = _Links()
    yield from _regular(archive, links)
    if links.hard or links.symbolic:
        yield from _linked(archive, links)


def _regular(archive: Archive, links: _Links) -> Iterator[Member]:
    """The files that are no links, of all tars in the file: some are made by `cat`.

    A tar ends in blocks of zeros; a tar that does not is cut off, or is damaged at that place.
    """
    read = reader_of(archive)
    none_lost()
    _refuse_others(read(0, min(_BLOCK, archive.size)))
    start: int | None = 0
    while start is not None:
        try:
            end = yield from _part(archive, read, start, links)
        except (Unreadable, UserError):
            raise
        except Exception:  # of many kinds, where a header was made up
            raise_lost()
            raise Unreadable("truncated or damaged tar") from None
        if archive.size < end + _BLOCK or read(end, _BLOCK).strip(b"\0"):
            raise Unreadable("truncated or damaged tar: its end is missing")
        start = _next_part(read, end, archive.size)


def _part(archive: Archive, read: Read, start: int, links: _Links) -> Generator[Member, None, int]:
    """The files of the tar that begins at a place, and, returned, the place of its end."""
    file = opened_span(read, start, archive.size - start, _BLOCK)
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_TarInfo) as tar:
        before = -1
        for info in tar:
            if info.size < 0 or info.offset <= before:
                raise Unreadable("truncated or damaged tar: a member has a size below 0")
            before = info.offset
            tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
            name = plain_name(info.name)
            if not name:
                continue
            if info.islnk():
                links.hard.append((name, plain_name(info.linkname)))
            elif info.issym():
                folder = posixpath.dirname(name)
                links.symbolic.append((name, plain_name(posixpath.join(folder, info.linkname))))
            elif info.issparse():
                yield _closed(archive, name, _SPARSE)
            elif info.isreg():
                offset = start + info.offset_data
                if offset + info.size > archive.size:
                    raise Unreadable("truncated tar: its last file is cut off")
                opens = partial(opened_span, read, offset, info.size)
                yield Member(archive.path / name, archive, offset, info.size, content=opens)
        return start + int(tar.offset)  # type: ignore[attr-defined]


def _refuse_others(head: bytes) -> None:
    """Raise Unreadable for a file that is called a tar and is none."""
    if not head:
        raise Unreadable("truncated or damaged tar: it is empty")
    if head.startswith(_PACKED):
        raise Unreadable(f"{NO_TAR} a compressed one: unpack it (gunzip, or zstd -d)")
    if head.startswith(b"PK\x03\x04"):
        raise Unreadable(f"{NO_TAR} a zip archive: unpack it, or pack its files as a tar")


def _next_part(read: Read, end: int, size: int) -> int | None:
    """Where another tar begins behind the end of one; None if nothing follows.

    Raises: Unreadable for something else, and for many zeros: the file may not be whole.
    """
    at = end + _BLOCK
    while at < size and at - end <= _MOST_ZEROS:
        data = read(at, min(2**16, size - at))
        for place in range(0, len(data), _BLOCK):
            block = data[place : place + _BLOCK]
            if block.strip(b"\0"):
                _refuse_no_header(block, size - at - place)
                return at + place
        at += max(len(data), 1)
    if at < size:
        raise Unreadable(f"truncated or damaged tar: {size - end:,} bytes of zeros follow its end")
    return None


def _refuse_no_header(block: bytes, left: int) -> None:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise Unreadable(
            f"truncated or damaged tar: {left:,} bytes that are no tar follow its end"
        ) from None


def _linked(archive: Archive, links: _Links) -> Iterator[Member]:
    """The files that links lead to: the tar is looked through again for them."""
    wanted = {target for _, target in (*links.hard, *links.symbolic)}
    found: dict[str, Member] = {}
    for member in _regular(archive, _Links()):
        if member.name_inside in wanted:
            found[member.name_inside] = member
    for name, target in links.hard:
        if target not in found:
            yield _closed(archive, name, _LINK)
            continue
        file = found[target]
        link = Member(archive.path / name, archive, file.offset, file.length, content=file.content)
        found.setdefault(name, link)
        yield link
    for name, target in links.symbolic:
        if target not in found:
            yield _closed(archive, name, _LINK)


def _closed(archive: Archive, name: str, reason: str) -> Member:
    """A file that cannot be opened, for a reason."""

    def refuse() -> NoReturn:
        raise Unreadable(reason)

    return Member(archive.path / name, archive, 0, 0, content=refuse)
