"""NumPy's .npy: one image or many. `axes.layout_of` decides which axis is what, or refuses.

Stored values, float or integer. Pickled objects are never loaded. Neither spacing nor positions are
known.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_channels,
    check_count,
    check_size,
)
from dino_x.data.readers.axes import Layout, layout_of
from dino_x.data.storage.member import whereabouts
from dino_x.data.windowing import choose_window


@dataclass(frozen=True)
class _Header:
    """How the values lie in the file."""

    layout: Layout
    dtype: np.dtype
    fortran: bool
    offset: int


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the images of a file, from its header. Raises Unreadable."""
    header = _read_header(path, reading.axes)
    layout = header.layout
    check_count(layout.images)
    check_size(layout.size("H"), layout.size("W"))
    check_channels(layout.size("C"), layout.size("H") * layout.size("W"))
    where = whereabouts(path)
    return [
        ImageRef(
            path=path,
            frame=frame,
            height=layout.size("H"),
            width=layout.size("W"),
            channels=layout.size("C"),
            modality=reading.modality,
            series=_series(layout, where, frame),
            format="NumPy",
            bits=8 * header.dtype.itemsize,
            axis=layout.axes,
        )
        for frame in range(layout.images)
    ]


def _series(layout: Layout, where: str, frame: int) -> str | None:
    if layout.images == 1:
        return None
    volume = layout.volume_of(frame)
    return key("series", where, str(volume)) if volume else key("series", where)


def read(ref: ImageRef) -> Image:
    """Decode one image. Raises Unreadable."""
    header = _read_header(ref.path, ref.axis)
    layout = header.layout
    if ref.frame >= layout.images:
        raise Unreadable(f"image {ref.frame} of a file that has {layout.images}")
    try:
        values = layout.read(ref.path, header.dtype, header.offset, header.fortran, ref.frame)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    if header.dtype == bool:
        values = values.astype(np.uint8) * 255
    pixels = channels_first(values)
    byte = values.dtype == np.uint8
    window = choose_window(
        pixels,
        bits=8 if byte else None,
        modality=ref.modality,
        hounsfield=ref.modality == "CT" and layout.size("C") == 1 and not byte,
    )
    return Image(pixels, window, ref.spacing_mm, ref.modality)


def _read_header(path: Path, axes: str | None) -> _Header:
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read(file)
            offset = file.tell()
            there = file.seek(0, os.SEEK_END) - offset
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    except Exception:
        raise Unreadable("damaged .npy header") from None
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise Unreadable("a .npy of anything but whole or real numbers is not supported")
    needed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or there < needed:
        raise Unreadable(f"truncated: {there:,} of {needed:,} bytes of values are there")
    if len(shape) < 2 or 0 in shape:
        raise Unreadable("a .npy that is not [H, W] or a stack of these")
    return _Header(layout_of(shape, axes), dtype, fortran, offset)
