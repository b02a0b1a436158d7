"""The image files in an archive: the members of a tar file, the rows of a Parquet file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

from dino_x.data.image import Unreadable
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import Archive, none_lost, opened_span, raise_lost, reader_of
from dino_x.data.storage.member import Member, plain_name
from dino_x.errors import UserError

TAR, PARQUET = ".tar", ".parquet"
PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVE_SUFFIXES = (TAR, PARQUET, *PACKED_TAR)

PACKED = (
    "a compressed tar has to be unpacked up to each image: unpack it (gunzip, or zstd -d) to a"
    " .tar; images are compressed anyway"
)
_BLOCK = 512  # bytes: a tar consists of such blocks
_LONGEST_NAME = 2**20  # bytes of a header that holds a long name, or other facts of a member


def is_archive(name: str) -> bool:
    """Whether a file holds many images, by its suffix.

    >>> is_archive("ct-000.tar"), is_archive("ct.tar.gz"), is_archive("ct.png")
    (True, True, False)
    """
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def members(archive: Archive) -> Iterator[Member]:
    """The files in an archive in its order, each with its content at hand.

    Raises:
        Unreadable: the rest of the archive cannot be read, for the reason in the message.
        UserError: the archive is gone, or its store does not answer.
    """
    name = archive.path.name.lower()
    if name.endswith(PACKED_TAR):
        raise Unreadable(PACKED)
    if name.endswith(PARQUET):
        return _rows(archive)
    return _tar_members(archive)


class _TarInfo(tarfile.TarInfo):
    """A header of a tar that can lead neither backwards nor into memory without end."""

    # Python before 3.11.14 and 3.13.6 goes back to the header itself, for ever, where its size is
    # below 0 (CVE-2025-8194), and reads a header of any size as a whole.
    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        facts = not (self.isreg() or self.isdir() or self.issparse())
        if self.size < 0 or (facts and self.size > _LONGEST_NAME):
            raise tarfile.ReadError("a size that cannot be")
        return super()._proc_member(tar)  # type: ignore[misc]


def _tar_members(archive: Archive) -> Iterator[Member]:
    """The regular files of a tar. Its headers are read; what is between them is skipped.

    A tar ends in blocks of zeros; a tar that does not is cut off, or is damaged at that place.
    """
    read = reader_of(archive)
    none_lost()
    try:
        file = opened_span(read, 0, archive.size, _BLOCK)
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_TarInfo) as tar:
            before = -1
            for info in tar:
                if info.size < 0 or info.offset <= before:
                    raise Unreadable("truncated or damaged tar: a member has a size below 0")
                before = info.offset
                tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
                is_file = info.isreg() and not info.issparse()
                if not is_file or not plain_name(info.name):
                    continue
                if info.offset_data + info.size > archive.size:
                    raise Unreadable("truncated tar: its last file is cut off")
                path = archive.path / plain_name(info.name)
                opens = partial(opened_span, read, info.offset_data, info.size)
                yield Member(path, archive, info.offset_data, info.size, content=opens)
            end = tar.offset
    except (Unreadable, UserError):
        raise
    except Exception:  # of many kinds, where a header was made up
        raise_lost()
        raise Unreadable("truncated or damaged tar") from None
    if read(end, _BLOCK).strip(b"\0") or archive.size < end + _BLOCK:
        raise Unreadable("truncated or damaged tar: its end is missing")


def _rows(archive: Archive) -> Iterator[Member]:
    """The images of a Parquet file, named by their `path`, or by number if paths repeat."""
    layout = row_groups.layout(archive)
    if layout.index:
        return
    count = layout.metadata.num_row_groups
    paths = chain.from_iterable(row_groups.read_names(archive, group) for group in range(count))
    names = [plain_name(path or "") for path in paths]
    if "" in names or len(set(names)) < len(names):
        names = [f"{number:09d}" for number in range(len(names))]
    number = 0
    for group in range(count):
        for row, value in enumerate(row_groups.read_group(archive, group)):
            path = archive.path / names[number]
            number += 1
            content = value.as_py()
            if content is not None:
                yield Member(path, archive, row_group=group, row=row, content=content)
