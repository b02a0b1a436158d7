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
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
)

from dino_x.data.image import (
    DEFAULT,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_count,
)
from dino_x.data.readers.dicom_header import Header, is_dicom, read_header
from dino_x.data.readers.dicom_place import acquisition_of, orientation_of, position_of, stack_of
from dino_x.data.readers.dicom_terms import BODY_PARTS, MODALITIES, PHOTOMETRICS, number, term
from dino_x.data.windowing import choose_window, voi_window

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
        header = read_header(path)
        check_count(header.frames)
        return [_ref(path, header, frame) for frame in range(header.frames)]
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("damaged DICOM header") from None


def _ref(path: Path, header: Header, frame: int) -> ImageRef:
    elements = header.elements
    slope, intercept = _slope_intercept(header, frame)
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
        series=header.series,
        format="DICOM",
        bits=int(elements.get("BitsStored") or elements.get("BitsAllocated") or 0) or None,
        body_part=term(elements.get("BodyPartExamined"), BODY_PARTS),
        slope=slope,
        intercept=intercept,
        photometric=term(elements.get("PhotometricInterpretation"), PHOTOMETRICS),
        window=_file_window(header, frame),
    )


def read(ref: ImageRef) -> Image:
    """Decode one frame. Raises Unreadable."""
    header = read_header(ref.path)
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


def _to_image(stored: np.ndarray, header: Header, frame: int) -> Image:
    """Stored values, [H, W] or [H, W, 3], to an image in physical units."""
    elements = header.elements
    modality = term(elements.get("Modality"), MODALITIES)
    spacing = _spacing(header, frame)
    if elements.get("PhotometricInterpretation") == "PALETTE COLOR":
        colours = apply_color_lut(stored, elements)
        pixels = channels_first(colours)
        # Entries of 16 bits fill them, unless their writer used only 8.
        wide = colours.dtype != np.uint8 and colours.max() > 255
        return Image(pixels, (0.0, 65535.0 if wide else 255.0), spacing, modality)
    bits = int(elements.get("BitsStored") or elements.get("BitsAllocated") or 0)
    if stored.ndim == 3:
        pixels = channels_first(stored)
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


def _rescale(header: Header, frame: int) -> Dataset:
    """The elements that `apply_modality_lut` needs for one frame; empty if there are none."""
    rescale = Dataset()
    rescale.file_meta = header.elements.file_meta
    if lut := header.elements.get("ModalityLUTSequence"):
        rescale.ModalityLUTSequence = lut
        return rescale
    slope, intercept = _slope_intercept(header, frame)
    if slope is not None and intercept is not None:
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, intercept
    return rescale


def _slope_intercept(header: Header, frame: int) -> tuple[float | None, float | None]:
    """The slope and intercept of one frame; (None, None) if it has none, or a table instead."""
    if header.elements.get("ModalityLUTSequence"):
        return None, None
    group = "PixelValueTransformationSequence"
    slope = number(header.of_frame(frame, group, "RescaleSlope"))
    intercept = number(header.of_frame(frame, group, "RescaleIntercept"))
    if slope is None or intercept is None:
        return None, None
    return slope, intercept


def _file_window(header: Header, frame: int) -> tuple[float, float] | None:
    """The (low, high) of the file's first window, or None if it has no valid one."""
    group = "FrameVOILUTSequence"
    center = number(header.of_frame(frame, group, "WindowCenter"))
    width = number(header.of_frame(frame, group, "WindowWidth"))
    if center is None or width is None:
        return None
    function = header.of_frame(frame, group, "VOILUTFunction") or "LINEAR"
    return voi_window(center, width, function)


def _spacing(header: Header, frame: int) -> tuple[float, float] | None:
    """The (row, column) spacing in mm: in the patient, else at the detector; None if unknown."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sizes = header.of_frame(frame, "PixelMeasuresSequence", keyword)
        try:
            row, column = (float(part) for part in sizes)
        except (TypeError, ValueError):
            continue
        if 0 < row < math.inf and 0 < column < math.inf:
            return row, column
    return None


def _without_padding(pixels: np.ndarray, stored: np.ndarray, elements: Dataset) -> np.ndarray:
    """`pixels` with not-a-number where the file says there is no image, for the percentiles."""
    padding = number(elements.get("PixelPaddingValue"))
    if padding is None:
        return pixels
    return np.where(stored == padding, np.float32(np.nan), pixels)


def _decode(ref: ImageRef, header: Header) -> np.ndarray:
    """Stored values of one frame, [H, W] or [H, W, 3].

    Only that frame is read from the file, unless it is deflated or its encoding is not the one
    that its transfer syntax names.
    """
    index = ref.frame if header.frames > 1 else 0
    plugin = _PLUGINS.get(header.syntax, "")
    deflated = header.syntax == DeflatedExplicitVRLittleEndian
    if deflated or header.explicit == header.syntax.is_implicit_VR:
        with ref.path.open("rb") as file:
            dataset = pydicom.dcmread(file, force=True)
            return pixel_array(dataset, index=index, decoding_plugin=plugin)
    with ref.path.open("rb") as file:
        return pixel_array(
            file, index=index, transfer_syntax_uid=header.syntax, decoding_plugin=plugin
        )


def _decoding_failed(error: Exception, syntax: UID) -> str:
    """A fixed phrase: messages of the libraries can quote header values."""
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return f"truncated or damaged pixel data ({syntax.name})"
