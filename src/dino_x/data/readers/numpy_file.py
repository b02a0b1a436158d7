"""NumPy's .npy: one image [H, W] or [H, W, 1 or 3], or a stack of them with one dimension more.

Stored values, float or integer. A last dimension of 1 or 3 is channels. Pickled objects are never
loaded. Neither spacing nor positions are known.
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
    check_count,
    check_size,
)
from dino_x.data.storage.member import mapped, whereabouts
from dino_x.data.windowing import choose_window


@dataclass(frozen=True)
class _Header:
    """How the values lie in the file: `images` x `height` x `width` x `channels`."""

    images: int
    height: int
    width: int
    channels: int
    dtype: np.dtype
    stored: tuple[int, ...]
    fortran: bool
    offset: int


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the images of a file, from its header. Raises Unreadable."""
    header = _read_header(path)
    check_count(header.images)
    check_size(header.height, header.width)
    series = key("series", whereabouts(path)) if header.images > 1 else None
    return [
        ImageRef(
            path=path,
            frame=frame,
            height=header.height,
            width=header.width,
            modality=reading.modality,
            series=series,
            format="NumPy",
            bits=8 * header.dtype.itemsize,
        )
        for frame in range(header.images)
    ]


def read(ref: ImageRef) -> Image:
    """Decode one image. Raises Unreadable."""
    header = _read_header(ref.path)
    if ref.frame >= header.images:
        raise Unreadable(f"image {ref.frame} of a file that has {header.images}")
    try:
        order = "F" if header.fortran else "C"
        stored = mapped(ref.path, header.dtype, header.offset, header.stored, order)
    except (OSError, ValueError):
        raise Unreadable("truncated .npy") from None
    shape = (header.images, header.height, header.width, header.channels)
    values = stored.reshape(shape, order="A" if header.fortran else "C")[ref.frame]
    if header.dtype == bool:
        values = values.astype(np.uint8) * 255
    pixels = channels_first(values)
    byte = values.dtype == np.uint8
    window = choose_window(
        pixels,
        bits=8 if byte else None,
        modality=ref.modality,
        hounsfield=ref.modality == "CT" and header.channels == 1 and not byte,
    )
    return Image(pixels, window, ref.spacing_mm, ref.modality)


def _read_header(path: Path) -> _Header:
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
    images, height, width, channels = _dimensions(shape)
    return _Header(images, height, width, channels, dtype, shape, fortran, offset)


def _dimensions(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The (images, height, width, channels) of an array.

    >>> _dimensions((5, 4)), _dimensions((5, 4, 3)), _dimensions((9, 5, 4))
    ((1, 5, 4, 1), (1, 5, 4, 3), (9, 5, 4, 1))
    """
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise Unreadable("a .npy that is not [H, W], [H, W, 3] or a stack of these")
    *rest, last = shape
    if len(shape) >= 3 and last in (1, 3):
        images = rest[0] if len(rest) == 3 else 1
        return images, rest[-2], rest[-1], last
    if len(shape) == 4:
        raise Unreadable("a .npy of four dimensions must end in 1 or 3 channels")
    return (shape[0] if len(shape) == 3 else 1), shape[-2], shape[-1], 1
