"""NRRD (.nrrd, .nhdr with a file of values), as volumes: `volume` cuts them into slices.

- Which axes are of space, of channels or of a list follows from their kinds, directions or
  spacings. Axes that the header does not explain are refused, never guessed.
- Orientation: space directions in a space that is named (left-posterior-superior, ...). A space
  without such a name is taken for left-posterior-superior, as ITK does, and remarked on.
- A plane is shown as it is stored.
- Encodings: raw, gzip and text.

Source: http://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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

_NAME = "NRRD"
_MOST_LINES = 10_000  # that are passed over in front of the values
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE_OF = {name: code for code, names in _TYPES.items() for name in names.split("|")}
_PACKED = {
    "raw": None,
    "gzip": "gzip",
    "gz": "gzip",
    "text": "text",
    "txt": "text",
    "ascii": "text",
}

# What the kind of an axis says of it, see `Volume.axes`; "x" stands for an axis of space.
_LETTERS = {"domain": "x", "space": "x", "time": "T", "list": "T"}
_CHANNELS = {"vector", "2-vector", "3-vector", "4-vector", "rgb-color", "3-color", "4-color"}
_CHANNELS |= {"rgba-color", "scalar", "stub"}
_DIRECTIONS = {"point", "covariant-vector", "normal", "3-gradient", "3-normal", "quaternion"}
_SEGMENT = re.compile(r"segment\d+_", re.IGNORECASE)
_ABBREVIATION = re.compile(r"([lr])([ap])([si])t?$")
_AMBIGUOUS = (
    "NRRD whose header does not say what its axes are: add a line of them, such as"
    ' "kinds: domain domain domain list"'
)


@dataclass(frozen=True)
class _Geometry:
    """What a header says of the axes.

    Attributes:
        letters: what each stored axis is, see `Volume.axes`.
        columns: a step along x, y and z in the header's space, [3, number of axes of space].
        spaced: whether the length of a step is known.
        colour: the kind of the axis of channels, in small letters; "" if there is none.
    """

    letters: str
    columns: np.ndarray
    spaced: bool
    colour: str


def is_nrrd(head: bytes) -> bool:
    """Whether a file's first bytes are those of a NRRD."""
    return head.startswith(b"NRRD0")


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the slices of a file along `reading.slice_axis`, by volume. Raises Unreadable."""
    return refs_of(path, _read_header(path), reading)


def read(ref: ImageRef) -> Image:
    """Decode one slice. Raises Unreadable."""
    return read_slice(ref, _read_header(ref.path))


def values_in(path: Path) -> Path | None:
    """The other file that holds the values; None if there is none. Raises Unreadable."""
    fields, _ = _fields(path)
    return data_file(path, fields["datafile"], _NAME) if fields.get("datafile") else None


def _read_header(path: Path) -> Volume:
    with errors_as_reasons(_NAME):
        fields, end = _fields(path)
        return check_volume(_volume(path, fields, end))


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields by their names in small letters without blanks, and where the header ends.

    Of keys, which people define, those of segments become a field "segment".
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        header_line(file, _NAME)
        while line := header_line(file, _NAME):
            field, colon, text = line.partition(":")
            if line.startswith("#") or not colon:
                continue
            if not text.startswith("="):
                fields[field.lower().replace(" ", "")] = text.strip()
            elif _SEGMENT.match(field):
                fields["segment"] = "yes"
        return fields, file.tell()


def _volume(path: Path, fields: dict[str, str], end: int) -> Volume:
    dimension = int(numbers_of(fields.get("dimension", ""), _NAME, 1)[0])
    if not 2 <= dimension <= 5:
        raise Unreadable("NRRD of other than two to five dimensions is not supported")
    shape = lengths_of(fields.get("sizes", ""), _NAME, dimension)
    geometry = _geometry(fields, shape)
    dtype, packed = _dtype(fields), _packed(fields)
    letters, flat = geometry.letters, "z" not in geometry.letters
    if flat:
        letters, shape = letters + "z", (*shape, 1)
    source = data_file(path, fields["datafile"], _NAME) if fields.get("datafile") else path
    begin = 0 if fields.get("datafile") else end
    offset, start = _place(fields, source, begin, packed, math.prod(shape) * dtype.itemsize)
    affine, remark = _affine(fields, geometry)
    return Volume(
        format=_NAME,
        path=source,
        axes=letters,
        shape=shape,
        dtype=dtype,
        offset=offset,
        affine=affine,
        packed=packed,
        start=start,
        flat=flat,
        spaced=geometry.spaced,
        alpha=geometry.colour == "rgba-color",
        kind=_kind(path, fields, geometry, shape, dtype),
        remark=remark,
        unpack="save it with `encoding: raw` (unu save -e raw)",
    )


def _kind(
    path: Path, fields: dict[str, str], geometry: _Geometry, shape: tuple[int, ...], dtype: np.dtype
) -> str | None:
    """Label maps by their keys or name; directions by the kind of their axis.

    As many real numbers a voxel as there are axes of space are displacements.
    """
    if dtype.kind in "ui" and ("segment" in fields or is_label_map(path)):
        return "segmentation"
    if geometry.colour in _DIRECTIONS or "matrix" in geometry.colour:
        return "map"
    channels = shape[geometry.letters.index("C")] if "C" in geometry.letters else 1
    return "map" if dtype.kind == "f" and channels == geometry.columns.shape[1] else None


def _dtype(fields: dict[str, str]) -> np.dtype:
    code = _TYPE_OF.get(" ".join(fields.get("type", "").lower().split()))
    if code is None:
        raise Unreadable("NRRD of this type is not supported: save it as float")
    endian = fields.get("endian", "").lower()
    if code[1] == "1" or _packed(fields) == "text":
        return np.dtype(code)
    if endian not in ("little", "big"):
        raise Unreadable("NRRD whose header does not name its byte order: add `endian: little`")
    return np.dtype(("<" if endian == "little" else ">") + code)


def _packed(fields: dict[str, str]) -> str | None:
    encoding = fields.get("encoding", "").lower()
    if encoding not in _PACKED:
        raise Unreadable(
            "NRRD in this encoding is not supported: save it as gzip (unu save -e gzip)"
        )
    return _PACKED[encoding]


def _place(
    fields: dict[str, str], source: Path, begin: int, packed: str | None, size: int
) -> tuple[int, int]:
    """Where the values begin, and where what they are packed in does.

    Lines are passed over before unpacking, and bytes after it.
    """
    lines = int(numbers_of(fields.get("lineskip", "0"), _NAME, 1)[0])
    skip = int(numbers_of(fields.get("byteskip", "0"), _NAME, 1)[0])
    if not 0 <= lines <= _MOST_LINES or skip < -1 or (skip == -1 and packed is not None):
        raise Unreadable("damaged NRRD header: its line skip or byte skip is not valid")
    if skip == -1:  # the values are the last bytes of their file
        return max(begin, size_of(source) - size), 0
    if lines:
        with source.open("rb") as file:
            file.seek(begin)
            begin = _after_lines(file, lines)
    if packed is None:
        return begin + skip, 0
    return (0, begin + skip) if packed == "text" else (skip, begin)


def _after_lines(file: IO[bytes], lines: int) -> int:
    for _ in range(lines):
        if not file.readline(2**16).endswith(b"\n"):
            raise Unreadable("damaged NRRD header: its line skip or byte skip is not valid")
    return file.tell()


def _geometry(fields: dict[str, str], shape: tuple[int, ...]) -> _Geometry:
    kinds = fields.get("kinds", "").lower().split() or ["???"] * len(shape)
    steps = _steps(fields, len(shape))
    if len(kinds) != len(shape):
        raise Unreadable("damaged NRRD header: its kinds are not valid")
    known = any(step is not None for step in steps)
    letters, colour = "", ""
    for kind, length, step in zip(kinds, shape, steps, strict=True):
        letter = _letter(kind, length, step, known)
        colour = kind if letter == "C" else colour
        letters += letter
    if not known and "kinds" not in fields and _is_ambiguous(shape, _dtype(fields)):
        raise Unreadable(_AMBIGUOUS)
    if "?" in letters or (colour == "rgba-color" and shape[letters.index("C")] != 4):
        raise Unreadable(_AMBIGUOUS)
    space = [axis for axis, letter in enumerate(letters) if letter == "x"]
    if len(space) not in (2, 3) or letters.count("T") > 1 or letters.count("C") > 1:
        raise Unreadable(_AMBIGUOUS)
    for axis, letter in zip(space, "xyz", strict=False):
        letters = letters[:axis] + letter + letters[axis + 1 :]
    columns = [steps[axis] for axis in space]
    spaced = all(column is not None for column in columns)
    width = max((len(column) for column in columns if column is not None), default=len(space))
    if not spaced:
        columns = list(np.eye(max(3, width))[: len(space)])
    return _Geometry(letters, np.array(columns, np.float64).T, spaced, colour)


def _is_ambiguous(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether axes without any explanation may be something else than x, y and z.

    No picture is four pixels wide, and bytes three or four deep are rather colours than slices.
    """
    if len(shape) < 3:
        return False
    return len(shape) > 3 or shape[0] <= 4 or (shape[2] in (3, 4) and dtype.itemsize == 1)


def _letter(kind: str, length: int, step: np.ndarray | None, others: bool) -> str:
    """What an axis is, by its kind, its length and the step along it; "?" if nothing says it.

    Args:
        others: whether the header names the step along other axes.
    """
    if kind in ("complex", "hsv-color", "xyz-color"):
        raise Unreadable("NRRD of complex values or unusual colours is not supported: convert it")
    if kind in _CHANNELS or kind in _DIRECTIONS or "matrix" in kind:
        return "C"
    if step is not None and len(step) > 3 and not step[:3].any():
        return "T"  # of a space with time
    if kind in _LETTERS:
        return _LETTERS[kind]
    if step is not None or not others:
        return "x"
    return "T" if length == 1 else "?"


def _steps(fields: dict[str, str], dimension: int) -> list[np.ndarray | None]:
    """A step along each stored axis in the header's space, where the header says it."""
    if "spacedirections" in fields:
        found = re.findall(r"\([^)]*\)|none", fields["spacedirections"], re.IGNORECASE)
        if len(found) != dimension:
            raise Unreadable(f"damaged NRRD: {INVALID_ORIENTATION}")
        return [_vector(text) for text in found]
    spacings = numbers_of(fields.get("spacings", " nan" * dimension), _NAME, dimension)
    steps: list[np.ndarray | None] = []
    for spacing in spacings:
        place = sum(step is not None for step in steps)
        known = math.isfinite(spacing) and spacing != 0 and place < 3
        steps.append(np.eye(3)[place] * spacing if known else None)
    return steps


def _vector(text: str) -> np.ndarray | None:
    """A vector such as (0,0.5,0); None for "none" and for one of no numbers."""
    if text.lower() == "none":
        return None
    vector = np.array(numbers_of(text.strip("()").replace(",", " "), _NAME))
    return None if np.isnan(vector).all() else vector


def _affine(fields: dict[str, str], geometry: _Geometry) -> tuple[np.ndarray, str | None]:
    """From stored voxels to the patient, and what the header leaves open."""
    unit = _unit(fields)
    affine = np.eye(4)
    if geometry.columns.shape[1] == 2:  # shown as it is stored, whatever its directions
        lengths = np.linalg.norm(geometry.columns, axis=0) * unit
        affine[:3, :3] = LPS * [*lengths, 1]
        if not is_whole(affine):
            raise Unreadable(f"damaged NRRD: {INVALID_ORIENTATION}")
        return affine, None
    to_ras, named = _to_ras(fields.get("space", "").lower())
    origin = _vector(fields["spaceorigin"]) if "spaceorigin" in fields else None
    origin = np.zeros(3) if origin is None else origin
    if len(origin) < 3 or len(geometry.columns) < 3:
        raise Unreadable(f"damaged NRRD: {INVALID_ORIENTATION}")
    affine[:3, :3] = to_ras @ geometry.columns[:3] * unit
    affine[:3, 3] = to_ras @ origin[:3] * unit
    if not is_whole(affine):
        raise Unreadable(f"damaged NRRD: {INVALID_ORIENTATION}")
    if named or "spacedirections" not in fields:
        return affine, None
    return affine, "its space has no name: read as left-posterior-superior"


def _to_ras(space: str) -> tuple[np.ndarray, bool]:
    """From a space to the canonical axes, and whether its name says where they go."""
    short = "".join(word[:1] for word in space.split("-")) if "-" in space else space
    found = _ABBREVIATION.match(short)
    if found is None:
        return LPS, False
    return np.diag([1.0 if letter in "ras" else -1.0 for letter in found.groups()]), True


def _unit(fields: dict[str, str]) -> float:
    """Millimetres in a unit of space; 1 if it is not named."""
    for field in ("spaceunits", "units"):
        for unit in re.findall(r'"([^"]*)"', fields.get(field, "")):
            if unit.strip():
                return MM.get(unit.strip(), 1.0)
    return 1.0
