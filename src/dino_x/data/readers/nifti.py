"""NIfTI through nibabel's headers, as volumes: `volume` cuts them into slices.

- Values: stored values times `scl_slope` plus `scl_inter`, as nibabel's `get_fdata` has them.
- Orientation: by sform, qform or, without either, NIfTI's own default.
- Of four dimensions the last is time.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from dino_x.data.image import DEFAULT, Image, ImageRef, Reading, Unreadable
from dino_x.data.readers.volume import (
    INVALID_ORIENTATION,
    MM,
    Volume,
    check_volume,
    errors_as_reasons,
    is_whole,
    read_slice,
    refs_of,
)

_SINGLE, _PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")

# The squared length of a quaternion may be more than 1 by this much.
_ROUNDING = 1e-3


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
    return refs_of(path, _read_header(path), reading)


def read(ref: ImageRef) -> Image:
    """Decode one slice. Raises Unreadable."""
    return read_slice(ref, _read_header(ref.path))


def _read_header(path: Path) -> Volume:
    """Read the header, and check what it promises against the size of the file."""
    with errors_as_reasons("NIfTI"), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
        head = file.read(Nifti2Header.sizeof_hdr)
        return check_volume(_parsed(path, head, packed))


def _parsed(path: Path, raw: bytes, packed: bool) -> Volume:
    second = raw[4:8] in (*_SINGLE, *_PAIR)
    kind: type[Nifti1Header] = _Header2 if second else _Header1
    if len(raw) < kind.sizeof_hdr:
        begins = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")
        known = len(raw) < 4 or {Nifti1Header.sizeof_hdr, Nifti2Header.sizeof_hdr} & {*begins}
        raise Unreadable("truncated NIfTI" if known else "not a NIfTI file")
    magic = raw[4:8] if second else raw[344:348]
    if magic in _PAIR:
        raise Unreadable("NIfTI in two files (.hdr, .img) is not supported: join them into a .nii")
    if magic not in _SINGLE:
        raise Unreadable("not a NIfTI file")
    raw = raw[: kind.sizeof_hdr]
    _refuse_unread_types(kind(raw, check=False))
    header = kind(raw)
    slope, intercept = _scaling(header)
    unit = MM.get(header.get_xyzt_units()[0], 1.0)
    return Volume(
        format="NIfTI",
        path=path,
        axes="xyzT",
        shape=_shape(header),
        dtype=header.get_data_dtype(),
        offset=max(header.get_data_offset(), kind.single_vox_offset),
        affine=np.diag([unit, unit, unit, 1.0]) @ _affine(header),
        slope=slope,
        intercept=intercept,
        packed="gzip" if packed else None,
        kind=_kind(int(header["intent_code"])),
        unpack="unpack it (gunzip)",
    )


def _refuse_unread_types(header: Any) -> None:
    """Raise Unreadable for types of the standard that are not read. Source: nifti1.h, datatype."""
    name = {1: "1-bit", 1536: "128-bit", 2048: "256-bit complex"}.get(int(header["datatype"]))
    if name is not None:
        raise Unreadable(f"NIfTI of {name} values is not supported: save it as float")


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
        if code and affine is not None and is_whole(affine):
            return cast(np.ndarray, affine)
        tried = tried or bool(code)
    if tried:
        raise Unreadable(f"damaged NIfTI: {INVALID_ORIENTATION}")
    return cast(np.ndarray, header.get_base_affine())


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
