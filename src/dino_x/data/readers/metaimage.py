"""MetaImage (.mha, .mhd with .raw or .zraw), as volumes: `volume` cuts them into slices.

- Values: stored values times ElementToIntensityFunctionSlope plus its offset, if there are any.
- Axes are those of ITK: to the patient's left, to posterior, to superior; AnatomicalOrientation,
  which says the same in letters, is not looked at.
- The last of four dimensions is time. A plane is shown as it is stored.

Source: https://docs.itk.org/en/latest/learn/metaio.html.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from dino_x.data.image import DEFAULT, Image, ImageRef, Reading, Unreadable
from dino_x.data.readers.detached import (
    data_file,
    header_line,
    is_label_map,
    lengths_of,
    numbers_of,
)
from dino_x.data.readers.volume import (
    INVALID_ORIENTATION,
    LPS,
    MM,
    Volume,
    check_volume,
    errors_as_reasons,
    is_whole,
    read_slice,
    refs_of,
)
from dino_x.data.storage.member import size_of

_NAME = "MetaImage"
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}
_BEGINS = re.compile(rb"\s*(ObjectType\s*[=:]\s*Image|NDims\s*[=:]\s*\d)")
_LINE = re.compile(r"\s*(\w+)\s*[=:]\s*(.*?)\s*$")
_LAST = "ElementDataFile"


def is_metaimage(head: bytes, name: str) -> bool:
    """Whether a file's first bytes, or those and its name in small letters, are of a MetaImage."""
    named = name.endswith((".mha", ".mhd"))
    return bool(_BEGINS.match(head)) or (named and b"NDims" in head)


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the slices of a file along `reading.slice_axis`, by volume. Raises Unreadable."""
    return refs_of(path, _read_header(path), reading)


def read(ref: ImageRef) -> Image:
    """Decode one slice. Raises Unreadable."""
    return read_slice(ref, _read_header(ref.path))


def _read_header(path: Path) -> Volume:
    with errors_as_reasons(_NAME):
        fields, end = _fields(path)
        return check_volume(_volume(path, fields, end))


def values_in(path: Path) -> Path | None:
    """The other file that holds the values; None if there is none. Raises Unreadable."""
    fields, _ = _fields(path)
    return None if fields[_LAST].upper() == "LOCAL" else data_file(path, fields[_LAST], _NAME)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of the header, and where it ends."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while _LAST not in fields:
            line = header_line(file, _NAME)
            if line is None:
                raise Unreadable("truncated MetaImage header: it names no ElementDataFile")
            if found := _LINE.match(line):
                fields[found[1]] = found[2]
        if not fields[_LAST]:
            raise Unreadable("damaged MetaImage header: its ElementDataFile has no name")
        return fields, file.tell()


def _volume(path: Path, fields: dict[str, str], end: int) -> Volume:
    if fields.get("ObjectType", "Image") != "Image":
        raise Unreadable("MetaIO of another object than an image")
    dimensions = int(numbers_of(fields.get("NDims", ""), _NAME, 1)[0])
    if not 2 <= dimensions <= 4:
        raise Unreadable("MetaImage of other than two to four dimensions is not supported")
    shape = lengths_of(fields.get("DimSize", ""), _NAME, dimensions)
    channels = int(numbers_of(fields.get("ElementNumberOfChannels", "1"), _NAME, 1)[0])
    if channels < 1:
        raise Unreadable("no pixels")
    flat = dimensions == 2
    shape = (channels, *shape, *(1,) * (3 - dimensions))
    affine, spaced = _affine(fields, dimensions)
    slope, intercept = _scaling(fields)
    dtype = _dtype(fields)
    local = fields[_LAST].upper() == "LOCAL"
    source = path if local else data_file(path, fields[_LAST], _NAME)
    start, packed = _place(fields, source, end if local else 0)
    size, there = math.prod(shape) * dtype.itemsize, size_of(source)
    if packed is None and _header_size(fields) == -1:
        start = max(start, there - size)
    elif packed is None and _is_wide(fields, there - start, size):
        dtype = np.dtype(dtype.str.replace("4", "8"))
    return Volume(
        format=_NAME,
        path=source,
        axes="CxyzT"[: len(shape)],
        shape=shape,
        dtype=dtype,
        offset=0 if packed else start,
        affine=affine,
        slope=slope,
        intercept=intercept,
        packed=packed,
        start=start if packed else 0,
        flat=flat,
        spaced=spaced,
        modality=_MODALITIES.get(fields.get("Modality", "")),
        kind=_kind(path, dtype, channels, min(dimensions, 3)),
    )


def _kind(path: Path, dtype: np.dtype, channels: int, space: int) -> str | None:
    """Label maps by their name; displacements as they have a real number for each axis."""
    if channels == 1 and dtype.kind in "ui" and is_label_map(path):
        return "segmentation"
    return "map" if dtype.kind == "f" and channels == space else None


def _is_true(fields: dict[str, str], *names: str) -> bool | None:
    """The first of some fields that is there; None if none is."""
    for name in names:
        if name in fields:
            return fields[name][:1].upper() in ("T", "1")
    return None


def _dtype(fields: dict[str, str]) -> np.dtype:
    name = fields.get("ElementType", "").removesuffix("_ARRAY")
    if name not in _TYPES:
        raise Unreadable("MetaImage of this ElementType is not supported: save it as MET_FLOAT")
    big = _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return np.dtype((">" if big else "<") + _TYPES[name])


def _is_wide(fields: dict[str, str], there: int, size: int) -> bool:
    """Whether "long" values have eight bytes, as some writers mean it; MetaIO means four."""
    name = fields["ElementType"].removesuffix("_ARRAY")
    return name in ("MET_LONG", "MET_ULONG") and there == 2 * size


def _place(fields: dict[str, str], source: Path, start: int) -> tuple[int, str | None]:
    """Where the values begin in their file, and how they are packed."""
    skip = _header_size(fields)
    if skip < -1 or skip > size_of(source):
        raise Unreadable("damaged MetaImage header: its HeaderSize is not valid")
    start += max(skip, 0)
    if _is_true(fields, "BinaryData") is False:
        return start, "text"
    return start, "zlib" if _is_true(fields, "CompressedData") else None


def _header_size(fields: dict[str, str]) -> int:
    """Bytes in front of the values; -1 if the values are the last bytes of their file."""
    return int(numbers_of(fields.get("HeaderSize", "0"), _NAME, 1)[0])


def _scaling(fields: dict[str, str]) -> tuple[float | None, float | None]:
    name = "ElementToIntensityFunction"
    slope = numbers_of(fields.get(f"{name}Slope", "1"), _NAME, 1)[0]
    intercept = numbers_of(fields.get(f"{name}Offset", "0"), _NAME, 1)[0]
    if not (np.isfinite([slope, intercept]).all() and slope != 0) or (slope, intercept) == (1, 0):
        return None, None
    return slope, intercept


def _affine(fields: dict[str, str], dimensions: int) -> tuple[np.ndarray, bool]:
    """From stored voxels to the patient, and whether the size of a voxel is known."""
    spacing, spaced = np.ones(3), False
    for name in ("ElementSpacing", "ElementSize"):
        if not spaced and name in fields:
            named = numbers_of(fields[name], _NAME, dimensions)[:3]
            if np.isfinite(named).all() and all(named):
                spacing[: len(named)], spaced = named, True
    unit = MM.get(fields.get("DistanceUnits", "mm"), 1.0)
    if dimensions == 2:  # shown as it is stored, whatever its directions
        turn, origin = np.eye(3), np.zeros(3)
        spacing = np.abs(spacing)
    else:
        turn, origin = np.eye(dimensions), np.zeros(dimensions)
        for name in ("TransformMatrix", "Rotation", "Orientation"):
            if name in fields:  # a row of the field is the direction of an axis
                turn = np.reshape(numbers_of(fields[name], _NAME, dimensions**2), turn.shape).T
        for name in ("Offset", "Position", "Origin"):
            if name in fields:
                origin = np.array(numbers_of(fields[name], _NAME, dimensions))
    affine = np.eye(4)
    affine[:3, :3] = LPS @ turn[:3, :3] * (spacing * unit)
    affine[:3, 3] = LPS @ (origin[:3] * unit)
    if not is_whole(affine):
        raise Unreadable(f"damaged MetaImage: {INVALID_ORIENTATION}")
    return affine, spaced
