"""DICOM through pydicom, compressed transfer syntaxes through its plugins.

- Values: stored values through the modality LUT or the rescale slope and intercept, of the frame
  if the file says it by frame. MONOCHROME1 is mirrored within the image's own range, so that
  larger is brighter in every image.
- YBR becomes RGB; palettes become RGB, of 16 bits where their entries are.
- Files without preamble, without meta header, implicit, big-endian or deflated are read.
- `dicom_header` says which elements are read; only keys of patient and series leave it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    MAX_PIXELS,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_count,
)
from dino_x.data.readers.dicom_forms import stand_ins
from dino_x.data.readers.dicom_fragments import frame_alone
from dino_x.data.readers.dicom_header import (
    Header,
    NoPixels,
    is_dicom,
    opened,
    read_header,
    read_header_quickly,
)
from dino_x.data.readers.dicom_kind import (
    image_type_of,
    kind_of,
    remark_of,
    sop_class_of,
    without_image,
)
from dino_x.data.readers.dicom_place import acquisition_of, orientation_of, position_of, stack_of
from dino_x.data.readers.dicom_quick import Unusual
from dino_x.data.readers.dicom_terms import (
    BODY_PARTS,
    MODALITIES,
    PHOTOMETRICS,
    decimal,
    number,
    term,
)
from dino_x.data.readers.dicom_values import (
    bits_stored,
    file_window,
    grey_image,
    meaningful,
    moved_down,
    shift_of,
    slope_intercept,
)
from dino_x.data.storage.member import whereabouts
from dino_x.data.windowing import choose_window

__all__ = ["is_dicom", "read", "refs"]

# GDCM ends the process at some damaged JPEG 2000 and JPEG-LS images, where these raise.
_PLUGINS: dict[str, str] = {
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
}


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the frames of a file, from its header and its length. Raises Unreadable."""
    try:
        try:
            return _refs(path, read_header_quickly(path))
        except Unusual:
            return _refs(path, read_header(path))
    except NoPixels as empty:
        raise _no_pixels(empty) from None
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("damaged DICOM header") from None


def _no_pixels(empty: NoPixels) -> Unreadable:
    """The reason for a file without pixels: what it is instead, if its header says so."""
    try:
        return Unreadable(without_image(empty.elements) or str(empty))
    except Exception:
        return Unreadable("damaged DICOM header")


def _refs(path: Path, header: Header) -> list[ImageRef]:
    check_count(header.frames)
    return [_ref(path, header, frame) for frame in range(header.frames)]


def _ref(path: Path, header: Header, frame: int) -> ImageRef:
    elements = header.elements
    slope, intercept = slope_intercept(header, frame)
    thickness = number(header.of_frame(frame, "PixelMeasuresSequence", "SliceThickness"))
    return ImageRef(
        path=path,
        frame=frame,
        height=header.rows,
        width=header.columns,
        modality=term(elements.get("Modality"), MODALITIES),
        spacing_mm=_spacing(header, frame),
        thickness_mm=thickness if thickness and thickness > 0 else None,
        position_mm=position_of(header, frame),
        orientation=orientation_of(header, frame),
        stack=stack_of(header, frame),
        acquisition=acquisition_of(header, frame),
        patient=header.patient,
        series=_series(path, header),
        remark=remark_of(header),
        format="DICOM",
        bits=bits_stored(elements) or None,
        body_part=term(elements.get("BodyPartExamined"), BODY_PARTS),
        slope=slope,
        intercept=intercept,
        channels=3 if _is_colour(elements) else 1,
        image_type=image_type_of(header, frame),
        sop_class=sop_class_of(elements),
        kind=kind_of(header, frame),
        photometric=term(elements.get("PhotometricInterpretation"), PHOTOMETRICS),
        window=file_window(header, frame),
    )


def _series(path: Path, header: Header) -> str | None:
    """The key of the series; that of the file if it has several frames and names no series."""
    if header.series is None and header.frames > 1:
        return key("series", whereabouts(path))
    return header.series


def _is_colour(elements: Dataset) -> bool:
    samples = int(elements.get("SamplesPerPixel") or 1)
    return samples > 1 or bool(term(elements.get("PhotometricInterpretation"), {"PALETTE COLOR"}))


def read(ref: ImageRef) -> Image:
    """Decode one frame. Raises Unreadable."""
    header = read_header(ref.path)
    if ref.frame >= header.frames:
        raise Unreadable(f"frame {ref.frame} of a file that has {header.frames}")
    try:
        stored = _decode(ref, header)
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(_decoding_failed(error, header.syntax)) from None
    try:
        return _to_image(stored, header, ref.frame)
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("damaged DICOM header: values cannot be rescaled") from None


def _to_image(stored: np.ndarray, header: Header, frame: int) -> Image:
    """Stored values, [H, W] or [H, W, 3], to an image in physical units."""
    elements = header.elements
    modality = term(elements.get("Modality"), MODALITIES)
    spacing = _spacing(header, frame)
    if term(elements.get("PhotometricInterpretation"), {"PALETTE COLOR"}):
        colours = apply_color_lut(stored, elements)
        pixels = channels_first(colours)
        # Entries of 16 bits fill them, unless their writer used only 8.
        wide = colours.dtype != np.uint8 and colours.max() > 255
        return Image(pixels, (0.0, 65535.0 if wide else 255.0), spacing, modality)
    if stored.ndim == 3:
        pixels = channels_first(stored)
        return Image(pixels, choose_window(pixels, bits=bits_stored(elements)), spacing, modality)
    return replace(grey_image(stored, header, frame), spacing_mm=spacing)


def _spacing(header: Header, frame: int) -> tuple[float, float] | None:
    """The (row, column) spacing in mm: in the patient, else at the detector; None if unknown."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sizes = header.of_frame(frame, "PixelMeasuresSequence", keyword)
        try:
            row, column = (decimal(part) for part in sizes)
        except (TypeError, ValueError):
            continue
        if 0 < row < math.inf and 0 < column < math.inf:
            return row, column
    return None


def _decode(ref: ImageRef, header: Header) -> np.ndarray:
    """Stored values of one frame, [H, W] or [H, W, 3].

    Only that frame is read from the file, unless it is deflated or its encoding is not the one
    that its transfer syntax names.
    """
    index = ref.frame if header.frames > 1 else 0
    plugin = _PLUGINS.get(header.syntax, "")
    deflated = header.syntax == DeflatedExplicitVRLittleEndian
    as_it_is = not (deflated or header.explicit == header.syntax.is_implicit_VR)
    shift = 0 if header.syntax.is_encapsulated else shift_of(header.elements)
    with opened(ref.path) as file:
        source: Any = file
        how: dict[str, Any] = {"index": index, "decoding_plugin": plugin}
        how.update(stand_ins(header.elements))
        if header.fragments:
            source, how["index"] = frame_alone(file, header.elements, header.fragments[index]), 0
        elif as_it_is:
            how["transfer_syntax_uid"] = header.syntax
        else:
            source = pydicom.dcmread(file, force=True)
        if not header.fragments and (named := header.elements.get("PhotometricInterpretation")):
            how["photometric_interpretation"] = named  # as the standard writes it
        if _keeps_upper_bits(header):
            how["bits_stored"] = int(header.elements.BitsAllocated)
        if header.syntax == JPEGBaseline8Bit and header.elements.BitsAllocated == 16:
            how["bits_allocated"] = how["bits_stored"] = 8  # it never has more
        if _ends_within_bytes(header):
            del how["index"]
        stored = pixel_array(source, **how)
    if _ends_within_bytes(header):
        stored = stored[index]
    if shift:
        stored = moved_down(stored, shift)
    return meaningful(stored, header.elements, header.syntax)


def _keeps_upper_bits(header: Header) -> bool:
    """Whether bits above Bits Stored are decoded, too: `meaningful` decides about them.

    GDCM ends the process where it clears them in values of other than 16 bits.
    """
    if not header.syntax.is_encapsulated:
        return True
    return header.elements.BitsAllocated != 16 and header.syntax not in _PLUGINS


def _ends_within_bytes(header: Header) -> bool:
    """Whether frames of 1 bit follow each other within a byte: pydicom reads all of them then."""
    if header.elements.BitsAllocated != 1 or header.syntax.is_encapsulated or header.frames == 1:
        return False
    bits = header.rows * header.columns
    if bits % 8 and bits * header.frames > 10 * MAX_PIXELS:
        raise Unreadable(
            "frames of 1 bit that end within a byte are too many: save them with 8 bits"
        )
    return bool(bits % 8)


def _decoding_failed(error: Exception, syntax: UID) -> str:
    """A fixed phrase: messages of the libraries can quote header values."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, NotImplementedError):
        return f"this form of {syntax.name} is not supported: decompress it (gdcmconv --raw)"
    return f"truncated or damaged pixel data ({syntax.name})"
