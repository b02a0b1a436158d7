"""The image files in an archive: the members of a tar file, the rows of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from dino_x.data.image import Unreadable
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import Archive
from dino_x.data.storage.member import Member, plain_name
from dino_x.data.storage.tars import PACKED, tar_members

TAR, PARQUET = ".tar", ".parquet"
PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVE_SUFFIXES = (TAR, PARQUET, *PACKED_TAR)


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
    return tar_members(archive)


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
