"""DICOM through pydicom, compressed transfer syntaxes through GDCM.

- Values: stored values through the modality LUT or the rescale slope and intercept, of the frame
  if the file says it by frame. MONOCHROME1 is mirrored within the image's own range, so that
  larger is brighter in every image.
- YBR becomes RGB; palettes become 8-bit RGB.
- Files without preamble, without meta header, implicit, big-endian or deflated are read.
- Only the elements named in `_ELEMENTS` are looked at: none of them identifies a patient.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.multival import MultiValue
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
)

from dino_x.data.image import MAX_PIXELS, Image, ImageRef, Unreadable, check_size
from dino_x.views.windowing import choose_window, voi_window

# Odd values are common, harmless here, and quoted in pydicom's messages, which would put parts of
# headers on the screen and in logs: nothing is validated, logged or warned of while reading.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"pydicom\.")
gdcm.Trace.DebugOff()
gdcm.Trace.WarningOff()
gdcm.Trace.ErrorOff()

_ELEMENTS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "Modality",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "BitsAllocated",
        "BitsStored",
        "PixelRepresentation",
        "PixelPaddingValue",
        "RescaleSlope",
        "RescaleIntercept",
        "ModalityLUTSequence",
        "WindowCenter",
        "WindowWidth",
        "VOILUTFunction",
        "PixelSpacing",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "RedPaletteColorLookupTableDescriptor",
        "GreenPaletteColorLookupTableDescriptor",
        "BluePaletteColorLookupTableDescriptor",
        "RedPaletteColorLookupTableData",
        "GreenPaletteColorLookupTableData",
        "BluePaletteColorLookupTableData",
        "SegmentedRedPaletteColorLookupTableData",
        "SegmentedGreenPaletteColorLookupTableData",
        "SegmentedBluePaletteColorLookupTableData",
    )
]
_PIXEL_DATA = {Tag("PixelData"), Tag("FloatPixelData"), Tag("DoubleFloatPixelData")}
_UNDEFINED = 0xFFFFFFFF
_VRS = {b"AE", b"AS", b"CS", b"DA", b"DT", b"IS", b"LO", b"OB", b"PN", b"SH", b"TM", b"UI", b"UL"}


@dataclass(frozen=True)
class _Header:
    """The elements of `_ELEMENTS` that the file has, and what the pixels are encoded in."""

    elements: Dataset
    syntax: UID
    rows: int
    columns: int
    frames: int
    explicit: bool = True  # whether the pixel element names its value representation

    def of_frame(self, frame: int, group: str, keyword: str) -> Any:
        """A value as it holds for one frame: the frame's own, else all frames', else the file's."""
        for groups, item in (
            (self.elements.get("PerFrameFunctionalGroupsSequence"), frame),
            (self.elements.get("SharedFunctionalGroupsSequence"), 0),
        ):
            if groups and item < len(groups) and groups[item].get(group):
                value = groups[item].get(group)[0].get(keyword)
                if value not in (None, ""):
                    return value
        return self.elements.get(keyword)


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


def refs(path: Path) -> list[ImageRef]:
    """The frames of a file, from its header and the length of its pixels. Raises Unreadable."""
    header = _header(path)
    return [
        ImageRef(path=path, frame=frame, height=header.rows, width=header.columns)
        for frame in range(header.frames)
    ]


def read(ref: ImageRef) -> Image:
    """Decode one frame. Raises Unreadable."""
    header = _header(ref.path)
    if ref.frame >= header.frames:
        raise Unreadable(f"frame {ref.frame} of a file that has {header.frames}")
    try:
        stored = _decode(ref, header)
    except Exception as error:
        raise Unreadable(_decoding_failed(error, header.syntax)) from None
    try:
        return _to_image(stored, header, ref.frame)
    except Exception:
        raise Unreadable("damaged DICOM header: values cannot be rescaled") from None


def _to_image(stored: np.ndarray, header: _Header, frame: int) -> Image:
    """Stored values, [H, W] or [H, W, 3], to an image in physical units."""
    elements = header.elements
    modality = elements.get("Modality") or None
    spacing = _spacing(header, frame)
    if elements.get("PhotometricInterpretation") == "PALETTE COLOR":
        stored = apply_color_lut(stored, elements)
        if stored.dtype != np.uint8:  # entries fill 16 bits, unless their writer used only 8
            stored = (stored >> 8 if stored.max() > 255 else stored).astype(np.uint8)
        bits = 8
    else:
        bits = int(elements.get("BitsStored") or elements.get("BitsAllocated") or 0)
    if stored.ndim == 3:
        pixels = np.ascontiguousarray(stored.transpose(2, 0, 1), dtype=np.float32)
        return Image(pixels, choose_window(pixels, bits=bits), spacing, modality)

    rescale = _rescale(header, frame)
    values = apply_modality_lut(stored, rescale)
    window = _file_window(header, frame)
    if elements.get("PhotometricInterpretation") == "MONOCHROME1":
        mirror = float(np.nanmin(values)) + float(np.nanmax(values))
        values = mirror - values.astype(np.float64)
        window = (mirror - window[1], mirror - window[0]) if window else None
    pixels = values.astype(np.float32)[None]
    chosen = choose_window(
        _without_padding(pixels, stored, elements),
        bits=None if len(rescale) else bits,
        modality=modality,
        hounsfield=modality == "CT" and "RescaleIntercept" in rescale,
        file_window=window,
    )
    return Image(pixels, chosen, spacing, modality)


def _rescale(header: _Header, frame: int) -> Dataset:
    """The elements that `apply_modality_lut` needs, as they hold for one frame, if any."""
    rescale = Dataset()
    rescale.file_meta = header.elements.file_meta
    if lut := header.elements.get("ModalityLUTSequence"):
        rescale.ModalityLUTSequence = lut
        return rescale
    group = "PixelValueTransformationSequence"
    slope = _number(header.of_frame(frame, group, "RescaleSlope"))
    intercept = _number(header.of_frame(frame, group, "RescaleIntercept"))
    if slope is not None and intercept is not None:
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, intercept
    return rescale


def _file_window(header: _Header, frame: int) -> tuple[float, float] | None:
    """(low, high) of the file's first window, or None where it has no valid one."""
    group = "FrameVOILUTSequence"
    center = _number(header.of_frame(frame, group, "WindowCenter"))
    width = _number(header.of_frame(frame, group, "WindowWidth"))
    if center is None or width is None:
        return None
    function = header.of_frame(frame, group, "VOILUTFunction") or "LINEAR"
    return voi_window(center, width, function)


def _spacing(header: _Header, frame: int) -> tuple[float, float] | None:
    """(row, column) spacing in mm: in the patient, else at the detector."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value = header.of_frame(frame, "PixelMeasuresSequence", keyword)
        try:
            row, column = (float(part) for part in value)
        except (TypeError, ValueError):
            continue
        if 0 < row < math.inf and 0 < column < math.inf:
            return row, column
    return None


def _without_padding(pixels: np.ndarray, stored: np.ndarray, elements: Dataset) -> np.ndarray:
    """`pixels` with not-a-number where the file says there is no image, for the percentiles."""
    padding = _number(elements.get("PixelPaddingValue"))
    if padding is None:
        return pixels
    return np.where(stored == padding, np.float32(np.nan), pixels)


def _number(value: Any) -> float | None:
    """The first number of an element, or None where there is none."""
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _header(path: Path) -> _Header:
    """Read a file up to its pixel data, and check that all of the pixel data is there."""
    met: list[tuple[int, int]] = []  # the pixel data's tag and length, once it is met

    def at_pixel_data(tag: Any, vr: str | None, length: int) -> bool:
        if tag in _PIXEL_DATA:
            met.append((tag, length))
        return tag in _PIXEL_DATA

    try:
        with path.open("rb") as file:
            _refuse_inflation(file)
            elements = read_partial(file, at_pixel_data, force=True, specific_tags=_ELEMENTS)
            if not met:
                raise Unreadable("no pixel data")
            syntax = _syntax(elements)
            explicit = file.read(6)[4:] in (b"OB", b"OW", b"OF", b"OD", b"UN")
            header = _dimensions(elements, syntax, explicit)
            check_size(header.rows, header.columns)
            if syntax == JPEGExtended12Bit and elements.get("BitsStored") != 8:
                raise Unreadable("lossy JPEG of 12 bits is not supported")
            if syntax != DeflatedExplicitVRLittleEndian:
                file.seek(-6, io.SEEK_CUR)
                _check_length(file, header, met[-1][1])
    except Unreadable:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise Unreadable(f"cannot be read: {error.strerror}") from None
        raise Unreadable("damaged DICOM header") from None
    return header


def _syntax(elements: Any) -> UID:
    """The transfer syntax, told from the encoding where the file does not name it."""
    if named := elements.file_meta.get("TransferSyntaxUID"):
        syntax = UID(named)
        if not syntax.is_transfer_syntax:
            raise Unreadable("unknown transfer syntax")
        try:
            get_decoder(syntax)
        except NotImplementedError:
            raise Unreadable(f"transfer syntax {syntax.name} is not supported") from None
        return syntax
    implicit, little = elements.original_encoding
    if implicit:
        syntax = ImplicitVRLittleEndian
    else:
        syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    elements.file_meta.TransferSyntaxUID = syntax
    return syntax


def _dimensions(elements: Dataset, syntax: UID, explicit: bool) -> _Header:
    rows, columns = int(elements.get("Rows") or 0), int(elements.get("Columns") or 0)
    frames = max(1, int(elements.get("NumberOfFrames") or 1))
    return _Header(elements, syntax, rows, columns, frames, explicit)


def _check_length(file: BinaryIO, header: _Header, length: int) -> None:
    """Raise Unreadable unless the file holds all pixel data that its header promises."""
    offset = file.tell() + (12 if header.explicit else 8)
    size = file.seek(0, io.SEEK_END)
    if header.syntax.is_compressed:
        fragments = _count_fragments(file, offset, size)
        if fragments < header.frames:
            raise Unreadable(f"truncated: {fragments} of {header.frames} frames are there")
        return
    elements = header.elements
    samples = int(elements.get("SamplesPerPixel") or 1)
    if elements.get("PhotometricInterpretation") == "YBR_FULL_422":
        samples = 2
    bits = header.rows * header.columns * header.frames * samples * int(elements.BitsAllocated)
    there = min(size - offset, length)
    if there < bits // 8:
        raise Unreadable(f"truncated: {there:,} of {bits // 8:,} bytes of pixel data are there")


def _count_fragments(file: BinaryIO, offset: int, size: int) -> int:
    """Walk over encapsulated pixel data; raise Unreadable where it runs over the file's end.

    Source: DICOM PS3.5 A.4.
    """
    fragments = -1  # the first item is the table of offsets
    while offset < size:
        file.seek(offset)
        item = file.read(8)
        tag, length = item[:4], int.from_bytes(item[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return fragments
        if tag != b"\xfe\xff\x00\xe0" or offset + 8 + length > size:
            break
        fragments += 1
        offset += 8 + length
    if offset == size:  # some writers leave out the delimiter at the end
        return fragments
    raise Unreadable("truncated or damaged: the compressed pixel data has no end")


def _refuse_inflation(file: BinaryIO) -> None:
    """Raise Unreadable for a deflated file that inflates beyond any image; rewind the file."""
    head = file.read(1024)
    file.seek(0)
    if head[128:132] == b"DICM" and DeflatedExplicitVRLittleEndian.encode() in head:
        start = 144 + int.from_bytes(head[140:144], "little")
        file.seek(start)
        inflated = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated.decompress(file.read(), 2 * MAX_PIXELS)
        file.seek(0)
        if not inflated.eof:
            raise Unreadable("truncated, or inflates to more than any image")


def _decode(ref: ImageRef, header: _Header) -> np.ndarray:
    """Stored values of one frame, [H, W] or [H, W, 3].

    Only that frame is read from the file, unless it is deflated or its encoding is not the one
    that its transfer syntax names.
    """
    index = ref.frame if header.frames > 1 else 0
    deflated = header.syntax == DeflatedExplicitVRLittleEndian
    if deflated or header.explicit == header.syntax.is_implicit_VR:
        return pixel_array(pydicom.dcmread(ref.path, force=True), index=index)
    return pixel_array(ref.path, index=index, transfer_syntax_uid=header.syntax)


def _decoding_failed(error: Exception, syntax: UID) -> str:
    """A fixed phrase: messages of the libraries can quote header values."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"truncated or damaged pixel data ({syntax.name})"
