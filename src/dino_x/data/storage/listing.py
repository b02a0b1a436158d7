"""What is in a shard: the members of a tar file, the rows of a Parquet file."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial

from dino_x.data.image import Unreadable
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import Archive, none_lost, opened_span, raise_lost, reader_of
from dino_x.data.storage.member import Member, plain_name

TAR, PARQUET = ".tar", ".parquet"
PACKED_TAR = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
SHARD_SUFFIXES = (TAR, PARQUET, *PACKED_TAR)

PACKED = (
    "a compressed tar has to be unpacked up to each image: unpack it (gunzip, or zstd -d) to a"
    " .tar; images are compressed anyway"
)
_BLOCK = 512  # of a tar


def is_archive(name: str) -> bool:
    """Whether a file is one of many images, by its suffix.

    >>> is_shard("ct-000.tar"), is_shard("ct.tar.gz"), is_shard("ct.png")
    (True, True, False)
    """
    return name.lower().endswith(SHARD_SUFFIXES)


def members(shard: Archive) -> Iterator[Member]:
    """The files in a shard in its order, each with what opens it at hand.

    Raises:
        Unreadable: what was not given before cannot be read; the reason.
        UserError: the shard is gone, or its store does not answer.
    """
    name = shard.path.name.lower()
    if name.endswith(PACKED_TAR):
        raise Unreadable(PACKED)
    return _rows(shard) if name.endswith(PARQUET) else _tar_members(shard)


def _tar_members(shard: Archive) -> Iterator[Member]:
    """The regular files of a tar. Headers are read, and what is between them is passed over.

    A tar ends in blocks of zeros; one that does not was cut off, or is damaged at that place.
    """
    read = reader_of(shard)
    none_lost()
    try:
        with tarfile.open(fileobj=opened_span(read, 0, shard.size, _BLOCK), mode="r:") as tar:
            for info in tar:
                tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
                there = info.isreg() and not info.issparse()
                if not there or not plain_name(info.name):
                    continue
                if info.offset_data + info.size > shard.size:
                    raise Unreadable("truncated tar: its last file is cut off")
                path = shard.path / plain_name(info.name)
                opens = partial(opened_span, read, info.offset_data, info.size)
                yield Member(path, shard, info.offset_data, info.size, content=opens)
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError):
        raise_lost()
        raise Unreadable("truncated or damaged tar") from None
    if read(end, _BLOCK).strip(b"\0") or shard.size < end + _BLOCK:
        raise Unreadable("truncated or damaged tar: what should be its end is none")


def _rows(shard: Archive) -> Iterator[Member]:
    """The images of a Parquet file, called by their `path`, or by their number if these repeat."""
    layout = row_groups.layout(shard)
    if layout.index:
        return
    count = layout.metadata.num_row_groups
    names = [plain_name(n or "") for g in range(count) for n in row_groups.read_names(shard, g)]
    if "" in names or max(Counter(names).values(), default=1) > 1:
        names = [f"{number:09d}" for number in range(len(names))]
    number = 0
    for group in range(count):
        for row, value in enumerate(row_groups.read_group(shard, group)):
            path = shard.path / names[number]
            number += 1
            content = value.as_py()
            if content is not None:
                yield Member(path, shard, row_group=group, row=row, content=content)


def length_of(member: Member) -> int:
    """Bytes of a member that has just been listed."""
    return member.length if member.row_group < 0 else len(member.load())
