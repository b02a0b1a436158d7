"""The header of a DICOM file: what is read of it, and what is refused before it is decoded.

Only the elements of `ELEMENTS` are read, and none of them identifies a patient. The elements of
`IDENTIFIERS` become salted keys here and go no further.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import gdcm
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from dino_x.data.identity import is_placeholder, key, patient_key
from dino_x.data.image import Unreadable, check_size
from dino_x.data.readers.dicom_bounds import NoZeros, refuse_inflation
from dino_x.data.readers.dicom_elements import ELEMENTS, IDENTIFIERS, PIXEL_DATA
from dino_x.data.readers.dicom_forms import check_values
from dino_x.data.readers.dicom_fragments import Fragments, find_fragments
from dino_x.data.readers.dicom_quick import Elements, Unusual, read_quickly
from dino_x.data.readers.dicom_terms import PHOTOMETRICS, term

gdcm.Trace.DebugOff()
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()

_MOST_ELEMENTS = 50_000  # before the pixel data; a few hundred are usual
_VRS = {b"AE", b"AS", b"CS", b"DA", b"DT", b"IS", b"LO", b"OB", b"PN", b"SH", b"TM", b"UI", b"UL"}


class NoPixels(Unreadable):
    """A file without pixel data, with the elements that it has."""

    def __init__(self, elements: Dataset) -> None:
        super().__init__("no pixel data")
        self.elements = elements


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        elements: the elements of `ELEMENTS` that the file has.
        syntax: the transfer syntax of the pixels.
        rows: rows of each frame.
        columns: columns of each frame.
        frames: number of frames, at least 1.
        patient: the patient's key, or None.
        series: the series' key, or None.
        explicit: whether the pixel element names its value representation.
        nobody: whether the patient's number is a placeholder.
        too_long: whether there are pixel data of more frames than the header counts.
        fragments: where each frame lies if it is compressed and one fragment; else empty.
    """

    elements: Dataset
    syntax: UID
    rows: int
    columns: int
    frames: int
    patient: str | None = None
    series: str | None = None
    explicit: bool = True
    nobody: bool = False
    too_long: bool = False
    fragments: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _groups_by_frame(self) -> Any:
        return self.elements.get("PerFrameFunctionalGroupsSequence")

    @cached_property
    def _shared_groups(self) -> Any:
        return self.elements.get("SharedFunctionalGroupsSequence")

    def of_frame(self, frame: int, group: str, keyword: str) -> Any:
        """The value for one frame: the frame's own, else that of all frames, else the file's."""
        own = self.own_of_frame(frame, group, keyword)
        return self.elements.get(keyword) if own is None else own

    def own_of_frame(self, frame: int, group: str, keyword: str) -> Any:
        """The value that functional groups give: the frame's own, else that of all, else None."""
        for groups, item in ((self._groups_by_frame, frame), (self._shared_groups, 0)):
            if groups and item < len(groups) and groups[item].get(group):
                own = groups[item].get(group)[0].get(keyword)
                if own not in (None, ""):
                    return own
        return None


def is_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are DICOM, with or without the 128-byte preamble.

    Without one, the first element must be of group 2 or 8, low in it, and have a known value
    representation or a plausible length.
    """
    if head[128:132] == b"DICM" or head.startswith(b"DICM"):
        return True
    if len(head) < 8:
        return False
    for order in ("little", "big"):
        group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
        if group in (2, 8) and element <= 0x18:
            known_vr = head[4:6] in _VRS
            length = int.from_bytes(head[4:8], "little")
            return known_vr or (order == "little" and 0 < length <= 64)
    return False


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; one that begins with "DICM" gets the 128 bytes that it lacks."""
    with path.open("rb") as file:
        begins = file.read(4) == b"DICM"
        file.seek(0)
        yield io.BytesIO(bytes(128) + file.read()) if begins else file


def read_header(path: Path) -> Header:
    """Read a file up to its pixel data, and check that all of the pixel data is there.

    Raises: Unreadable.
    """
    with _errors_as_reasons(), opened(path) as file:
        elements, offset, length = _elements(file)
        file.seek(offset)
        explicit = file.read(6)[4:] in (b"OB", b"OW", b"OF", b"OD", b"UN")
        syntax = _syntax(elements)
        values = offset + (12 if explicit else 8)
        return _checked(file, elements, syntax, explicit, (values, length))


def read_header_quickly(path: Path) -> Header:
    """Read the header of a plain file, see `dicom_quick`; its elements are those of headers alone.

    Raises: Unusual for a file that `read_header` must read; Unreadable.
    """
    with _errors_as_reasons(), path.open("rb") as file:
        found = read_quickly(file)
        elements = cast(Dataset, found.elements)
        syntax = _known_syntax(found.syntax)
        return _checked(file, elements, syntax, found.explicit, (found.values, found.length))


@contextmanager
def _errors_as_reasons() -> Iterator[None]:
    try:
        yield
    except (Unreadable, Unusual):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"cannot be read: {error.strerror}") from None
        raise Unreadable("damaged DICOM header") from None


def _checked(
    file: BinaryIO, elements: Dataset, syntax: UID, explicit: bool, values: tuple[int, int]
) -> Header:
    """The header of some elements, if it can be true.

    Args:
        values: where the pixel data begin, and the length that their element states.
    """
    header = _dimensions(elements, syntax, explicit)
    check_size(header.rows, header.columns)
    check_values(elements, syntax.is_encapsulated)
    if syntax == JPEGExtended12Bit and elements.get("BitsStored") != 8:
        raise Unreadable("lossy JPEG of 12 bits is not supported: decompress it (dcmdjpeg)")
    if syntax == DeflatedExplicitVRLittleEndian:
        return header
    if syntax.is_compressed:
        return _with_fragments(file, header, values[0])
    return replace(header, too_long=_check_length(file, header, *values))


def _elements(file: BinaryIO) -> tuple[Dataset, int, int]:
    """The wanted elements, where the element of the pixel data begins, and the length it states.

    The last two have no meaning in a deflated file.
    """
    met: list[int] = []
    count = 0

    def at_pixel_data(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > _MOST_ELEMENTS:
            raise Unreadable("damaged DICOM header: it has no end")
        if tag in PIXEL_DATA:
            met.append(length)
        return tag in PIXEL_DATA

    refuse_inflation(file)
    tags = ELEMENTS + IDENTIFIERS
    elements = read_partial(
        cast(BinaryIO, NoZeros(file)), at_pixel_data, force=True, specific_tags=tags
    )
    written = elements.get("PhotometricInterpretation")
    known = term(written, PHOTOMETRICS)
    if known is not None and known != written:  # in small letters, or with blanks
        elements.PhotometricInterpretation = known
    if not met:
        raise NoPixels(elements)
    return elements, file.tell(), met[-1]


def _syntax(elements: Any) -> UID:
    """The transfer syntax; where the file does not name it, it follows from the encoding."""
    if named := elements.file_meta.get("TransferSyntaxUID"):
        return _known_syntax(str(named).strip(" \0"))
    implicit, little = elements.original_encoding
    if implicit:
        syntax = ImplicitVRLittleEndian
    else:
        syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    elements.file_meta.TransferSyntaxUID = syntax
    return syntax


@lru_cache(maxsize=64)
def _known_syntax(named: str) -> UID:
    """A transfer syntax that can be read. Raises Unreadable."""
    syntax = UID(named)
    if not syntax.is_transfer_syntax:
        raise Unreadable(_unsupported(syntax))
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise Unreadable(_unsupported(syntax)) from None
    return syntax


# Transfer syntaxes of the standard that are newer than pydicom's own list.
_NEWER = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
}
_VIDEO = ("MPEG", "HEVC", "H.264", "SMPTE")


def _unsupported(syntax: UID) -> str:
    """Why a transfer syntax is not read, and what to do."""
    name = _NEWER.get(syntax, syntax.name)
    if not re.fullmatch(r"[0-9.]{1,64}", syntax):
        return "unknown transfer syntax"
    if name == syntax:
        owner = "of the standard" if syntax.startswith("1.2.840.10008.") else "of a vendor"
        return f"transfer syntax {owner} is unknown: decompress it (gdcmconv --raw)"
    way = "save its frames as PNG" if name.startswith(_VIDEO) else "decompress it (gdcmconv --raw)"
    return f"transfer syntax {name} is not supported: {way}"


def _dimensions(elements: Dataset, syntax: UID, explicit: bool) -> Header:
    """The header that some elements make up."""
    rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
    frames = max(1, int(elements.get("NumberOfFrames") or 1))
    number, issuer, series = _identifiers(elements)
    return Header(
        elements,
        syntax,
        rows,
        columns,
        frames,
        patient_key(number, issuer),
        key("series", series),
        explicit,
        is_placeholder(number),
    )


def _identifiers(elements: Any) -> list[str]:
    """The identifiers as they stand in the file, whatever its character set is.

    They are removed from `elements`.
    """
    if isinstance(elements, Elements):
        return [elements.identifier(int(tag)).decode("latin-1") for tag in IDENTIFIERS]
    texts = []
    for tag in IDENTIFIERS:
        text = elements.get_item(tag).value if tag in elements else None
        texts.append(text.decode("latin-1") if isinstance(text, bytes) else str(text or ""))
        elements.pop(tag, None)
    return texts


def _with_fragments(file: BinaryIO, header: Header, offset: int) -> Header:
    """A header with the places of its frames. Raises Unreadable if there are not as many."""
    samples = int(header.elements.get("SamplesPerPixel") or 1)
    size = (header.rows, header.columns)
    found: Fragments = find_fragments(file, offset, header.syntax, size, samples)
    count = len(found.places)
    if count < header.frames:
        raise Unreadable(f"truncated: {count} of {header.frames} frames are there")
    return replace(
        header,
        too_long=found.images > header.frames,
        fragments=found.places if count == header.frames else (),
    )


def _check_length(file: BinaryIO, header: Header, offset: int, length: int) -> bool:
    """Raise Unreadable unless the file holds all pixel data that its header promises.

    Returns: whether it holds twice as much.

    Args:
        file: the file.
        header: its header.
        offset: where the pixel data begin.
        length: the length of the pixel data, as their element states it.
    """
    size = file.seek(0, io.SEEK_END)
    elements = header.elements
    samples = int(elements.get("SamplesPerPixel") or 1)
    if elements.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    bits = (
        header.rows
        * header.columns
        * header.frames
        * samples
        * int(elements.get("BitsAllocated") or 0)
    )
    there = min(size - offset, length)
    if there < bits // 8:
        raise Unreadable(f"truncated: {there:,} of {bits // 8:,} bytes of pixel data are there")
    return there >= 2 * (bits // 8)
