"""Images that are made from two files: a header, and the values that it names.

Whoever asks whether an image has changed, or whether two are the same, has to look at both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dino_x.data.image import Unreadable
from dino_x.data.readers import metaimage, nrrd
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.member import Member, version_of

# Formats whose headers may name a file of values, as `ImageRef.format` has them.
_VALUES_OF: dict[str, Callable[[Path], Path | None]] = {
    "NRRD": nrrd.values_in,
    "MetaImage": metaimage.values_in,
}
_SNIFFED_BYTES = 1024
_WRAPPED = 1 << 63  # a sum of times is kept in 64 bits with a sign


def values_in(path: Path, format: str | None = None) -> Path | None:
    """The other file that holds the values of an image, if its header names one; else None.

    Args:
        path: the file of the header, whatever its suffix.
        format: `ImageRef.format` if it is known, so that no other file is opened.
    """
    if isinstance(path, Member) or is_remote(path):
        return None  # archives are read without the files beside them
    try:
        values_of = _VALUES_OF.get(format or _format_of(path))
        return None if values_of is None else values_of(path)
    except (Unreadable, OSError):
        return None


def _format_of(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if nrrd.is_nrrd(head):
        return "NRRD"
    return "MetaImage" if metaimage.is_metaimage(head, path.name.lower()) else ""


def state_of(path: Path, format: str | None = None) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns of all files that an image is made from.

    Of two files both numbers are sums, which change when either file does.

    Args:
        path: a file on a disk.
        format: `ImageRef.format` if it is known.

    Raises: OSError if it is not there.
    """
    status = os.stat(path)
    return with_values((status.st_size, status.st_mtime_ns), path, format)


def with_values(state: tuple[int, int], path: Path, format: str | None = None) -> tuple[int, int]:
    """`state_of` of a file whose own size and time are known."""
    values = values_in(path, format)
    if values is None:
        return state
    try:
        status = os.stat(values)
    except OSError:  # it has gone since
        return state
    return state[0] + status.st_size, (state[1] + status.st_mtime_ns) % _WRAPPED


def version_of_image(path: Path, format: str | None = None) -> str | None:
    """A text that is of all files that an image is made from, in this state alone.

    Returns: that of `version_of` for an image of one file; None if a file is not there.
    """
    version, values = version_of(path), values_in(path, format)
    if version is None or values is None:
        return version
    of_values = version_of(values)
    return None if of_values is None else f"{version}|{of_values}"
