"""FreeSurfer's volumes (.mgz, .mgh) through nibabel's headers: `volume` cuts them into slices."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import IO, cast

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from dino_x.data.image import DEFAULT, Image, ImageRef, Reading, Unreadable
from dino_x.data.readers.volume import (
    INVALID_ORIENTATION,
    Volume,
    check_volume,
    errors_as_reasons,
    is_whole,
    read_slice,
    refs_of,
)

_NAME = "MGH"
_HEADER = 284  # bytes, in front of the values
_FIELDS = 90  # bytes of these that have a meaning
# The volumes of labels that FreeSurfer itself writes.
_LABELS = re.compile(r"aseg|aparc|wmparc|ribbon|filled|labels?\b|seg(mentation)?\b")


def is_mgh(head: bytes) -> bool:
    """Whether a file's first bytes, unpacked if they are compressed, are such a header."""
    if len(head) < _HEADER:
        return False
    version, *shape, kind, _, flag = struct.unpack(">7ih", head[:30])
    return version == 1 and min(shape) > 0 and kind in (0, 1, 3, 4, 10) and flag in (0, 1)


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the slices of a file along `reading.slice_axis`, by volume. Raises Unreadable."""
    return refs_of(path, _read_header(path), reading)


def read(ref: ImageRef) -> Image:
    """Decode one slice. Raises Unreadable."""
    return read_slice(ref, _read_header(ref.path))


def _read_header(path: Path) -> Volume:
    with errors_as_reasons(_NAME), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        head = file.read(_HEADER)
        if len(head) < _HEADER:
            raise Unreadable("truncated MGH")
        return check_volume(_volume(path, head, packed))


def _volume(path: Path, head: bytes, packed: bool) -> Volume:
    header = MGHHeader(head[:_FIELDS])
    shape = tuple(int(side) for side in header["dims"])
    if min(shape) < 1:
        raise Unreadable("no pixels")
    affine = np.asarray(header.get_affine(), np.float64)
    if not is_whole(affine):
        raise Unreadable(f"damaged MGH: {INVALID_ORIENTATION}")
    dtype = header.get_data_dtype()
    labels = dtype.kind in "ui" and bool(_LABELS.search(path.name.lower()))
    return Volume(
        format=_NAME,
        path=path,
        axes="xyzT",
        shape=shape,
        dtype=dtype,
        offset=_HEADER,
        affine=affine,
        packed="gzip" if packed else None,
        kind="segmentation" if labels else None,
        unpack="unpack it (gunzip)",
    )
