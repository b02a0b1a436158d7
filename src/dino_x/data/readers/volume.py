"""Volumes: slices as a radiologist sees them, whatever format and orientation they are stored in.

- Values: stored values times the slope plus the intercept of the file.
- Volumes are brought to canonical orientation first (first axis to the patient's right, second to
  anterior, third to superior).
- Slices: axial ones from inferior to superior, rows from anterior to posterior; coronal ones from
  posterior to anterior, rows from superior to inferior; both with the patient's right on the left.
  Sagittal ones from left to right, rows from superior to inferior, anterior on the left.
- Every volume of a file with times is a series of its own.
- Of values that are not packed the bytes of a slice are read. Packed ones are unpacked once for
  all slices, and never further than their header says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    SLICE_AXES,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    check_channels,
    check_count,
    check_size,
)
from dino_x.data.readers.packed import from_text, unpacked
from dino_x.data.storage.member import size_of, version_of, whereabouts
from dino_x.data.storage.parts import CUT_OFF, read_part
from dino_x.data.storage.unpacked import VolumeCache
from dino_x.data.windowing import choose_window

# Packed values may unpack to this many bytes: unlike others they are in memory as a whole.
MAX_UNPACKED = 800 * 2**20
_BEST_RATIO = 1032  # of deflate: no file can unpack to more than this many times its size
_MOST_TEXT = 64 * 2**20  # bytes of values that are written as text

INVALID_ORIENTATION = "its orientation is not valid"

# Of 3-D headers of 4-D values, and of values that were written anew behind an old header.
MORE_VALUES = "twice the values that its header counts, or more: the first are read"

# To the patient's left, posterior and superior, in the terms of the canonical axes.
LPS = np.diag([-1.0, -1.0, 1.0])
MM = {"m": 1000.0, "meter": 1000.0, "cm": 10.0, "um": 0.001, "micron": 0.001}

_unpacked: VolumeCache[np.ndarray] = VolumeCache(limit_bytes=256 * 2**20)


@dataclass(frozen=True)
class Volume:
    """What a header says of the values in a file.

    Attributes:
        format: the name of the format.
        path: the file that holds the values; it may be another one than that of the header.
        axes: letters of the stored axes, fastest first: x, y and z are those of a voxel, C its
            channels, T times.
        shape: the lengths of these axes.
        dtype: the type of a stored value, in the file's byte order.
        offset: where the values begin: in the file, or in what it unpacks to.
        affine: from stored voxels (x, y, z) to the patient's canonical axes in mm, [4, 4].
        slope: factor from stored to physical values; None where there is none.
        intercept: added after the slope; None where there is none.
        packed: how the values are packed: "gzip", "zlib" or "text"; None if they are not.
        start: where packed values begin in the file.
        flat: whether it is a single picture, which is shown as it is stored.
        spaced: whether the header names the size of a voxel.
        alpha: whether the last channel says how far the others show.
        modality: DICOM's term for the modality, if the file names it.
        kind: what the file says it holds if that is no image, see `image.KINDS`.
        remark: what the header leaves open: fixed phrases with "; " in between.
        unpack: how the user unpacks it, for the reason why it is refused.
    """

    format: str
    path: Path
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    affine: np.ndarray
    slope: float | None = None
    intercept: float | None = None
    packed: str | None = None
    start: int = 0
    flat: bool = False
    spaced: bool = True
    alpha: bool = False
    modality: str | None = None
    kind: str | None = None
    remark: str | None = None
    unpack: str = "save it without compression"

    @property
    def size(self) -> int:
        """The number of bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def length(self, letter: str) -> int:
        """The length of an axis; 1 if there is none of that name."""
        return self.shape[self.axes.index(letter)] if letter in self.axes else 1

    @property
    def voxels(self) -> tuple[int, int, int]:
        """The stored numbers of voxels."""
        return self.length("x"), self.length("y"), self.length("z")

    @property
    def channels(self) -> int:
        """The number of channels that an image has."""
        return self.length("C") - self.alpha

    @cached_property
    def orientation(self) -> np.ndarray:
        """Turns the stored axes into canonical ones, as nibabel defines it, [3, 2]."""
        return cast(np.ndarray, io_orientation(self.affine))

    @property
    def canonical(self) -> tuple[int, ...]:
        """The numbers of voxels to the right, to anterior and to superior."""
        order = self.orientation[:, 0].argsort()
        return tuple(self.voxels[int(axis)] for axis in order)

    @property
    def canonical_affine(self) -> np.ndarray:
        """From canonical voxels to millimetres, [4, 4]."""
        turned = self.affine @ inv_ornt_aff(self.orientation, self.voxels)
        return cast(np.ndarray, turned)


def is_whole(affine: np.ndarray) -> bool:
    """Whether an affine maps a volume to a volume, and not to a plane or to nothing."""
    turn = affine[:3, :3]
    lengths = np.linalg.norm(turn, axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        return False
    return bool(abs(np.linalg.det(turn / lengths)) > 1e-3)


def refs_of(path: Path, volume: Volume, reading: Reading) -> list[ImageRef]:
    """The slices along `reading.slice_axis`, volume by volume. Raises Unreadable.

    Args:
        path: the file of the header.
        volume: what the header says.
        reading: what the user says.
    """
    name = "axial" if volume.flat else reading.slice_axis
    axis = SLICE_AXES.index(name)
    across, down = (other for other in range(3) if other != axis)
    size = volume.canonical
    height, width, slices, volumes = size[down], size[across], size[axis], volume.length("T")
    check_size(height, width)
    check_count(slices * volumes)
    check_channels(volume.length("C"), height * width)
    affine = volume.canonical_affine
    columns = affine[:3, :3].T  # each is one step along an axis, in mm
    steps = np.linalg.norm(columns, axis=1)
    normal = np.cross(columns[(axis + 1) % 3], columns[(axis + 2) % 3])
    normal /= np.linalg.norm(normal)
    first, step = float(normal @ affine[:3, 3]), float(normal @ columns[axis])
    where = whereabouts(path)
    series = [key("series", where, str(number)) for number in range(volumes)]
    alone = volume.flat and volumes == 1
    return [
        ImageRef(
            path=path,
            frame=time * slices + number,
            height=height,
            width=width,
            modality=volume.modality or reading.modality,
            spacing_mm=(float(steps[down]), float(steps[across])) if volume.spaced else None,
            thickness_mm=abs(step) if volume.spaced and not volume.flat else None,
            position_mm=None if volume.flat else first + number * step,
            series=None if alone else series[time],
            format=volume.format,
            bits=8 * volume.dtype.itemsize,
            slope=volume.slope,
            intercept=volume.intercept,
            axis=name,
            channels=volume.channels,
            kind=volume.kind,
            remark=volume.remark,
        )
        for time in range(volumes)
        for number in range(slices)
    ]


def read_slice(ref: ImageRef, volume: Volume) -> Image:
    """Decode one slice. Raises Unreadable."""
    axis = SLICE_AXES.index(ref.axis or DEFAULT.slice_axis)
    time, number = divmod(ref.frame, volume.canonical[axis])
    if time >= volume.length("T"):
        raise Unreadable(f"slice {ref.frame} of a file that has fewer")
    plane = _plane(volume, axis, number, time)
    if volume.slope is not None and volume.intercept is not None:
        plane = plane.astype(np.float64) * volume.slope + volume.intercept
    if volume.alpha:
        plane = _over_black(plane, volume.dtype)
    pixels = np.ascontiguousarray(plane, dtype=np.float32)
    byte = volume.dtype == np.uint8 and volume.slope is None
    window = choose_window(
        pixels,
        bits=8 if byte and (volume.flat or len(pixels) == 3) else None,
        modality=ref.modality,
        hounsfield=ref.modality == "CT" and len(pixels) == 1 and not byte,
    )
    return Image(pixels, window, ref.spacing_mm, ref.modality)


def _plane(volume: Volume, axis: int, number: int, time: int) -> np.ndarray:
    """The stored values of a slice as it is looked at, [C, H, W]."""
    stored_as = [int(place) for place in volume.orientation[:, 0]]  # canonical axis of x, y, z
    flips = volume.orientation[:, 1] < 0
    along = stored_as.index(axis)
    if flips[along]:
        number = volume.voxels[along] - 1 - number
    places = {"xyz"[along]: number, "T": time}
    values = _values(volume, tuple(places.get(letter) for letter in volume.axes))
    left = [letter for letter in volume.axes if letter not in places]
    if "C" not in left:
        values, left = values[..., None], [*left, "C"]
    across, down = (other for other in range(3) if other != axis)
    order = ["C", *("xyz"[stored_as.index(other)] for other in (down, across))]
    values = values.transpose([left.index(letter) for letter in order])
    # The axes of a canonical plane go to the right, to anterior or to superior: images are shown
    # the other way round.
    rows, columns = (slice(None, None, 1 if flips["xyz".index(one)] else -1) for one in order[1:])
    return values[:, rows, columns]


def _over_black(plane: np.ndarray, dtype: np.dtype) -> np.ndarray:
    most = np.iinfo(dtype).max if dtype.kind in "ui" else 1.0
    return cast(np.ndarray, plane[:-1] * (plane[-1:].astype(np.float64) / most))


def _values(volume: Volume, where: tuple[int | None, ...]) -> np.ndarray:
    """Some stored values: read from the file, or from what it was unpacked to."""
    with errors_as_reasons(volume.format):
        if volume.packed is None:
            return read_part(volume.path, volume.dtype, volume.offset, volume.shape, where, "F")
        version = version_of(volume.path)
        if version is None:
            raise Unreadable("cannot be opened: it is gone")
        which = (version, volume.start, volume.offset, volume.packed, volume.dtype, volume.size)
        stored = _unpacked.get(which, lambda: _unpack(volume))
        values = stored.view(volume.dtype).reshape(volume.shape, order="F")
        return values[tuple(slice(None) if place is None else place for place in where)]


def _unpack(volume: Volume) -> np.ndarray:
    """Unpack all values as bytes."""
    with errors_as_reasons(volume.format), volume.path.open("rb") as file:
        file.seek(volume.start)
        if volume.packed == "text":
            return from_text(file, math.prod(volume.shape), volume.dtype)
        return unpacked(file, str(volume.packed), volume.offset, volume.size)


def check_volume(volume: Volume) -> Volume:
    """Raise Unreadable for a header that promises more than the file holds, or what has no slices.

    Returns: the volume.
    """
    if min(volume.shape) < 1:
        raise Unreadable("no pixels")
    if volume.dtype.kind not in "uif" or volume.dtype.itemsize > 8:
        raise Unreadable(
            f"{volume.format} of colour or complex values is not supported: save single parts"
        )
    if not np.isfinite(volume.affine).all() or not np.isfinite(volume.orientation).all():
        raise Unreadable(f"damaged {volume.format}: {INVALID_ORIENTATION}")
    there, needed = size_of(volume.path), volume.offset + volume.size
    if volume.packed is None:
        if there < needed:
            raise Unreadable(f"truncated: {there:,} of {needed:,} bytes are there")
        return _with_remark(volume, MORE_VALUES) if there >= needed + volume.size else volume
    if volume.packed == "text":
        _check_text(volume, there)
    elif (there - volume.start) * _BEST_RATIO < needed:
        raise Unreadable("truncated, or its header claims more than there is")
    if needed > MAX_UNPACKED:
        raise Unreadable(
            f"unpacks to {needed >> 20:,} MB, more than the {MAX_UNPACKED >> 20:,} MB allowed:"
            f" {volume.unpack}, then there is no limit"
        )
    return volume


def _with_remark(volume: Volume, remark: str) -> Volume:
    return replace(volume, remark="; ".join(filter(None, (volume.remark, remark))))


def _check_text(volume: Volume, there: int) -> None:
    if 2 * math.prod(volume.shape) - 1 > there - volume.start:
        raise Unreadable("truncated, or its header claims more than there is")
    if there - volume.start > _MOST_TEXT:
        raise Unreadable(f"more than {_MOST_TEXT >> 20} MB of text: {volume.unpack}")


@contextmanager
def errors_as_reasons(name: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into Unreadable.

    Args:
        name: of the format.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except Unreadable as error:
        if str(error) == CUT_OFF:
            raise Unreadable(f"truncated {name}") from None
        raise
    except EOFError:
        raise Unreadable(f"truncated {name}") from None
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"cannot be opened: {error.strerror}") from None
        raise Unreadable(f"damaged {name}") from None
