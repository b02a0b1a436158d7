"""NIfTI through nibabel's headers: the slices of a volume as a radiologist sees them.

- Values: stored values times `scl_slope` plus `scl_inter`, as nibabel's `get_fdata` has them.
- Volumes are brought to canonical orientation first (first axis to the patient's right, second to
  anterior, third to superior) by sform, qform or, without either, NIfTI's own default.
- Slices: axial ones from inferior to superior, rows from anterior to posterior; coronal ones from
  posterior to anterior, rows from superior to inferior; both with the patient's right on the left.
  Sagittal ones from left to right, rows from superior to inferior, anterior on the left.
- Of four dimensions the last is time: every volume is a series of its own.
- A compressed volume is unpacked once for all its slices, and never further than its header says.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    SLICE_AXES,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    check_count,
    check_size,
)
from dino_x.data.storage.member import mapped, size_of, version_of, whereabouts
from dino_x.data.storage.unpacked import VolumeCache
from dino_x.data.windowing import choose_window

# A compressed file may unpack to this many bytes: unlike others it is in memory as a whole.
MAX_UNPACKED = 800 * 2**20
_BEST_RATIO = 1032  # of deflate: no file can unpack to more than this many times its size

_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")
_MM = {"meter": 1000.0, "micron": 0.001}

# The squared length of a quaternion may be more than 1 by this much.
_ROUNDING = 1e-3

_unpacked: VolumeCache[np.ndarray] = VolumeCache(limit_bytes=256 * 2**20)


class _Quaternion:
    """A header whose quaternion may be a little longer than 1, as rounding leaves it."""

    def get_qform_quaternion(self: Any) -> np.ndarray:
        """The quaternion, of length 1."""
        parts = np.array([self["quatern_b"], self["quatern_c"], self["quatern_d"]], np.float64)
        beyond = float(parts @ parts) - 1
        if not 0 < beyond <= _ROUNDING:
            return cast(np.ndarray, super().get_qform_quaternion())  # type: ignore[misc]
        return np.array([0.0, *parts / np.linalg.norm(parts)])


class _Header1(_Quaternion, Nifti1Header):
    """The header of version 1."""


class _Header2(_Quaternion, Nifti2Header):
    """The header of version 2."""


@dataclass(frozen=True)
class _Header:
    """The part of a header that is needed.

    Attributes:
        shape: stored x, y, z and time, each at least 1.
        dtype: type of a stored value, in the file's byte order.
        offset: where the values begin in the unpacked file.
        slope: factor from stored to physical values; None where there is none.
        intercept: added after the slope; None where there is none.
        orientation: turns the stored axes into canonical ones, as nibabel defines it, [3, 2].
        affine: from canonical voxels to millimetres, [4, 4].
        packed: whether the file is compressed.
        kind: what the file says it holds if that is no image, see `image.KINDS`.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype
    offset: int
    slope: float | None
    intercept: float | None
    orientation: np.ndarray
    affine: np.ndarray
    packed: bool
    kind: str | None = None

    @property
    def size(self) -> int:
        """The number of bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def canonical(self) -> tuple[int, ...]:
        """The numbers of voxels to the right, to anterior and to superior."""
        order = self.orientation[:, 0].argsort()
        return tuple(self.shape[int(axis)] for axis in order)


def is_nifti(head: bytes) -> bool:
    """Whether a file's first bytes, unpacked if they are compressed, are a NIfTI header."""
    head = unpacked_head(head)
    return head[344:348] in (*_SINGLE, *_PAIR) or head[4:8] in (*_SINGLE, *_PAIR)


def unpacked_head(head: bytes) -> bytes:
    """Unpack the first bytes of a gzip file; return other bytes as they are."""
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, 512)
    except zlib.error:
        return b""


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the slices of a file along `reading.slice_axis`, by volume. Raises Unreadable."""
    header = _read_header(path)
    axis = SLICE_AXES.index(reading.slice_axis)
    across, down = (other for other in range(3) if other != axis)
    size = header.canonical
    height, width, slices, volumes = size[down], size[across], size[axis], header.shape[3]
    check_size(height, width)
    check_count(slices * volumes)
    columns = header.affine[:3, :3].T  # each is one step along an axis, in mm
    steps = np.linalg.norm(columns, axis=1)
    normal = np.cross(columns[(axis + 1) % 3], columns[(axis + 2) % 3])
    normal /= np.linalg.norm(normal)
    first, step = float(normal @ header.affine[:3, 3]), float(normal @ columns[axis])
    where = whereabouts(path)
    series = [key("series", where, str(volume)) for volume in range(volumes)]
    return [
        ImageRef(
            path=path,
            frame=volume * slices + number,
            height=height,
            width=width,
            modality=reading.modality,
            spacing_mm=(float(steps[down]), float(steps[across])),
            thickness_mm=abs(step),
            position_mm=first + number * step,
            series=series[volume],
            format="NIfTI",
            bits=8 * header.dtype.itemsize,
            slope=header.slope,
            intercept=header.intercept,
            axis=reading.slice_axis,
            kind=header.kind,
        )
        for volume in range(volumes)
        for number in range(slices)
    ]


def read(ref: ImageRef) -> Image:
    """Decode one slice. Raises Unreadable."""
    header = _read_header(ref.path)
    axis = SLICE_AXES.index(ref.axis or DEFAULT.slice_axis)
    volume, number = divmod(ref.frame, header.canonical[axis])
    if volume >= header.shape[3]:
        raise Unreadable(f"slice {ref.frame} of a file that has fewer")
    stored = _values(ref.path, header)[..., volume]
    where = (slice(None),) * axis + (number,)  # a view: np.take would copy the volume first
    plane = apply_orientation(stored, header.orientation)[where]
    # The axes of a canonical plane go to the right, to anterior or to superior: images are shown
    # the other way round.
    plane = plane[::-1, ::-1].T
    if header.slope is not None and header.intercept is not None:
        plane = plane.astype(np.float64) * header.slope + header.intercept
    pixels = np.ascontiguousarray(plane, dtype=np.float32)[None]
    window = choose_window(pixels, modality=ref.modality, hounsfield=ref.modality == "CT")
    return Image(pixels, window, ref.spacing_mm, ref.modality)


def _values(path: Path, header: _Header) -> np.ndarray:
    """The stored values, [x, y, z, time]: mapped, or unpacked and kept for the next slice."""
    if header.packed:
        which = version_of(path)
        if which is None:
            raise Unreadable("cannot be opened: it is gone")
        values = _unpacked.get(which, lambda: _unpack(path, header))
    else:
        try:
            values = mapped(path, np.uint8, header.offset, (header.size,), "C")
        except (OSError, ValueError):
            raise Unreadable("truncated NIfTI") from None
    return cast(np.ndarray, values.view(header.dtype).reshape(header.shape, order="F"))


def _unpack(path: Path, header: _Header) -> np.ndarray:
    """Unpack all values of a compressed file as bytes, and nothing that follows them."""
    values = np.empty(header.size, dtype=np.uint8)
    with _reading(path) as (file, _):
        file.seek(header.offset)
        view, done = values.data, 0
        while done < header.size:
            got = file.readinto(view[done : done + 2**20])  # type: ignore[attr-defined]
            if not got:
                raise Unreadable("truncated NIfTI")
            done += got
        file.read(1)  # at the end of the file its checksum is verified
    return values


@contextmanager
def _reading(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Open a file, unpacked if it is packed, and say whether it is. Errors become Unreadable."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=raw) as file:
                    yield cast(IO[bytes], file), True
            else:
                yield raw, False
    except Unreadable:
        raise
    except EOFError:
        raise Unreadable("truncated NIfTI") from None
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"cannot be opened: {error.strerror}") from None
        raise Unreadable("damaged NIfTI") from None


def _read_header(path: Path) -> _Header:
    """Read the header, and check what it promises against the size of the file."""
    with _reading(path) as (file, packed):
        raw = file.read(Nifti2Header.sizeof_hdr)
        with np.errstate(all="ignore"):
            header = _parsed(raw, packed)
    there, needed = size_of(path), header.offset + header.size
    if not packed and there < needed:
        raise Unreadable(f"truncated: {there:,} of {needed:,} bytes are there")
    if packed and there * _BEST_RATIO < needed:
        raise Unreadable("truncated, or its header claims more than there is")
    if packed and needed > MAX_UNPACKED:
        raise Unreadable(
            f"unpacks to {needed >> 20:,} MB, more than the {MAX_UNPACKED >> 20:,} MB allowed:"
            " unpack it (gunzip), then there is no limit"
        )
    return header


def _parsed(raw: bytes, packed: bool) -> _Header:
    second = raw[4:8] in (*_SINGLE, *_PAIR)
    kind: type[Nifti1Header] = _Header2 if second else _Header1
    if len(raw) < kind.sizeof_hdr:
        raise Unreadable("truncated NIfTI")
    magic = raw[4:8] if second else raw[344:348]
    if magic in _PAIR:
        raise Unreadable("NIfTI in two files (.hdr, .img) is not supported: join them into a .nii")
    if magic not in _SINGLE:
        raise Unreadable("not a NIfTI file")
    header = kind(raw[: kind.sizeof_hdr])
    slope, intercept = _scaling(header)
    affine = _affine(header)
    orientation = io_orientation(affine)
    if not np.isfinite(orientation).all() or not np.isfinite(affine).all():
        raise Unreadable("damaged NIfTI: its orientation is not valid")
    shape = _shape(header)
    unit = _MM.get(header.get_xyzt_units()[0], 1.0)
    return _Header(
        shape=shape,
        dtype=_dtype(header),
        offset=max(header.get_data_offset(), kind.single_vox_offset),
        slope=slope,
        intercept=intercept,
        orientation=orientation,
        affine=np.diag([unit, unit, unit, 1.0]) @ affine @ inv_ornt_aff(orientation, shape[:3]),
        packed=packed,
        kind=_kind(int(header["intent_code"])),
    )


def _scaling(header: Any) -> tuple[float | None, float | None]:
    """The slope and intercept; an intercept that is no number is 0. Source: nifti1.h, scl_inter."""
    slope = float(header["scl_slope"])
    if math.isfinite(slope) and slope != 0 and not math.isfinite(float(header["scl_inter"])):
        return slope, 0.0
    found: tuple[float | None, float | None] = header.get_slope_inter()
    return found


def _affine(header: Any) -> np.ndarray:
    """From stored voxels to the patient: by sform, by qform, or by the size of a voxel alone.

    An sform that maps a volume to a plane or to nothing counts as missing if there is a qform, as
    some tools set its code and leave zeros.

    Raises: Unreadable if none of those that the header has is valid.
    """
    pixdim = header["pixdim"]
    spatial = np.abs(pixdim[1:4])
    pixdim[1:4] = np.where(np.isfinite(spatial) & (spatial > 0), spatial, 1)
    tried = False
    for form in (header.get_sform, header.get_qform):
        try:
            affine, code = form(coded=True)
        except Exception:  # of a quaternion that is none
            tried = True
            continue
        if code and affine is not None and _is_whole(affine):
            return cast(np.ndarray, affine)
        tried = tried or bool(code)
    if tried:
        raise Unreadable("damaged NIfTI: its orientation is not valid")
    return cast(np.ndarray, header.get_base_affine())


def _is_whole(affine: np.ndarray) -> bool:
    turn = affine[:3, :3]
    lengths = np.linalg.norm(turn, axis=0)
    if not np.isfinite(affine).all() or not (lengths > 0).all():
        return False
    return bool(abs(np.linalg.det(turn / lengths)) > 1e-3)


def _kind(intent: int) -> str | None:
    """What an intent code says of the values. Source: nifti1.h, NIFTI_INTENT_*."""
    if intent in (1002, 1005):  # labels, names of brain regions
        return "segmentation"
    statistics = 2 <= intent <= 24
    vectors = 1001 <= intent <= 1011
    return "map" if statistics or vectors else None


def _shape(header: Any) -> tuple[int, int, int, int]:
    shape = tuple(int(side) for side in header.get_data_shape())
    if not shape or min(shape) < 1:
        raise Unreadable("no pixels")
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise Unreadable("NIfTI of more than four dimensions is not supported: save single volumes")
    x, y, z, time = (*shape, 1, 1, 1)[:4]
    return x, y, z, time


def _dtype(header: Any) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise Unreadable("NIfTI of colour or complex values is not supported: save single parts")
    return dtype
