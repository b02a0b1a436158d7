"""From the stored values of a DICOM frame to physical ones: bits, rescale, units and padding.

- Bits above Bits Stored mean nothing, whatever the encoding, and signs are those of the header.
- A rescale that has only one of its two numbers has 1 or 0 for the other. A slope of 0 would make
  all values one; it counts as missing.
- Padding says where there is no image. It is left out of percentiles and shown as background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from dino_x.data.image import Image, Unreadable
from dino_x.data.readers.dicom_header import Header
from dino_x.data.readers.dicom_kind import is_screenshot, kind_of
from dino_x.data.readers.dicom_place import image_type
from dino_x.data.readers.dicom_tables import table_values
from dino_x.data.readers.dicom_terms import MODALITIES, first, number, term
from dino_x.data.windowing import CT_RANGE, choose_window, voi_window

_LOSSY = {JPEG2000, JPEGLSNearLossless, JPEGBaseline8Bit, JPEGExtended12Bit}
# Lossy codes overshoot the range of their values by up to this share of it.
_OVERSHOOT = 1 / 16

# What is asked of bits above Bits Stored before they count, see `_go_on`.
_FEW_PLACES, _LITTLE = 8, 0.25

_UNITS_OF_CT = ("HU", "HU_MOD")


def grey_image(stored: np.ndarray, header: Header, frame: int) -> Image:
    """Stored values [H, W] as an image in physical units, without its spacing."""
    elements = header.elements
    modality = term(elements.get("Modality"), MODALITIES)
    rescale = _rescale(header, frame)
    values = _physical(stored, rescale, elements)
    padding = _padding(stored, elements)
    shown = values if padding is None else values[~padding]
    window = file_window(header, frame)
    if term(elements.get("PhotometricInterpretation"), {"MONOCHROME1"}):
        finite = shown[np.isfinite(shown)]
        mirror = float(finite.min()) + float(finite.max()) if finite.size else 0.0
        values = mirror - values.astype(np.float64)
        window = (mirror - window[1], mirror - window[0]) if window else None
    pixels = values.astype(np.float32)[None]
    hounsfield = _is_hounsfield(header, frame, rescale)
    chosen = choose_window(
        pixels if padding is None else np.where(padding, np.float32(np.nan), pixels),
        bits=None if _changes_values(rescale) else _bits_in_use(stored, elements),
        modality=modality,
        hounsfield=hounsfield,
        file_window=window,
    )
    if padding is not None:
        black = CT_RANGE[0] if hounsfield else chosen[0]
        pixels[0][padding] = np.minimum(pixels[0][padding], black)
    return Image(pixels, chosen, None, modality)


def _physical(stored: np.ndarray, rescale: Dataset, elements: Dataset) -> np.ndarray:
    """Stored values through the table or the rescale of a frame, if it has one."""
    if lut := rescale.get("ModalityLUTSequence"):
        little = elements.file_meta.TransferSyntaxUID.is_little_endian
        return table_values(stored, lut[0], little, bool(elements.get("PixelRepresentation")))
    return apply_modality_lut(stored, rescale)


def bits_stored(elements: Dataset) -> int:
    """The number of bits that mean something; 0 if the header does not say."""
    return int(elements.get("BitsStored") or elements.get("BitsAllocated") or 0)


def _bits_in_use(stored: np.ndarray, elements: Dataset) -> int | None:
    """The number of bits that mean something; None if there are values of more, or below 0."""
    bits = bits_stored(elements)
    if elements.get("PixelRepresentation"):
        return None
    return None if stored.size and float(stored.max()) >= 2.0**bits else bits


def shift_of(elements: Dataset) -> int:
    """How many bits the values lie above the lowest, if High Bit is true; 0 for nearly all files.

    Source: DICOM PS3.5 of 2011, 8.1.1 and annex D; later editions allow 0 only.
    """
    high = number(elements.get("HighBit"))
    allocated = int(elements.get("BitsAllocated") or 0)
    if high is None or not bits_stored(elements) <= high < allocated:
        return 0
    return int(high) + 1 - bits_stored(elements)


def meaningful(stored: np.ndarray, elements: Dataset, syntax: UID) -> np.ndarray:
    """Decoded values without the bits that mean nothing, and with the sign of the header.

    Bits above Bits Stored are an overlay or rubbish, unless the values go on in them: then Bits
    Stored is too small, and without them bright parts would fold into dark ones.

    Args:
        stored: decoded values of any shape.
        elements: the header.
        syntax: the transfer syntax; lossy codes overshoot, which is cut off instead.

    Source: DICOM PS3.5 8.1.1.
    """
    bits = bits_stored(elements)
    if stored.dtype.kind not in "ui" or not 1 <= bits < 64 or stored.size == 0:
        return stored
    signed = bool(elements.get("PixelRepresentation"))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    least, most = int(stored.min()), int(stored.max())
    if low <= least and most <= high:
        return stored
    slack = _OVERSHOOT * (high - low)
    if syntax in _LOSSY and low - slack <= least and most <= high + slack:
        return stored.clip(low, high)
    values = stored.astype(np.int64) & ((1 << bits) - 1)
    if signed:
        values = np.where(values > high, values - (1 << bits), values)
    if _go_on(stored, values):
        return stored
    return values.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))


def _go_on(stored: np.ndarray, masked: np.ndarray) -> bool:
    """Whether values go on in the bits that a mask takes away.

    Where these bits change from one pixel to the next, values that go on in them change little and
    masked ones jump through their whole range. Of an overlay the opposite is true.
    """
    whole = stored.astype(np.int64)
    changes, jumps = [], []
    for axis in range(min(whole.ndim, 2)):
        of_whole, of_masked = np.diff(whole, axis=axis), np.diff(masked, axis=axis)
        differ = of_whole != of_masked
        changes.append(np.abs(of_whole[differ]))
        jumps.append(np.abs(of_masked[differ]))
    if sum(map(len, changes)) < _FEW_PLACES:
        return False
    # medians, as there are edges, too, where both change much
    return bool(np.median(np.concatenate(changes)) < _LITTLE * np.median(np.concatenate(jumps)))


def moved_down(stored: np.ndarray, shift: int) -> np.ndarray:
    """Values that lie `shift` bits too high, moved down; as they are if they do not lie there.

    Args:
        stored: whole values, with all bits of the file.
        shift: see `shift_of`. Some writers name a wrong High Bit: the lowest bits are then in use.
    """
    lowest = (1 << shift) - 1
    return stored if (stored & lowest).any() else stored >> shift


def slope_intercept(header: Header, frame: int) -> tuple[float | None, float | None]:
    """The slope and intercept of one frame; (None, None) if it has none, or a table instead.

    Raises: Unreadable for what is no number: values without it would be others.
    """
    if header.elements.get("ModalityLUTSequence"):
        return None, None
    slope = _of_rescale(header, frame, "RescaleSlope") or None
    intercept = _of_rescale(header, frame, "RescaleIntercept")
    if slope is None and intercept is None:
        return None, None
    return 1.0 if slope is None else slope, intercept or 0.0


def _of_rescale(header: Header, frame: int, keyword: str) -> float | None:
    """A number of a frame's rescale; None if it has none. Raises Unreadable."""
    value = header.of_frame(frame, "PixelValueTransformationSequence", keyword)
    found = number(value)
    if found is None and first(value):
        raise Unreadable("damaged DICOM header: its rescale is no number")
    return found


def file_window(header: Header, frame: int) -> tuple[float, float] | None:
    """The (low, high) of the file's first window, or None if it has no valid one."""
    group = "FrameVOILUTSequence"
    center = number(header.of_frame(frame, group, "WindowCenter"))
    width = number(header.of_frame(frame, group, "WindowWidth"))
    if center is None or width is None:
        return None
    function = first(header.of_frame(frame, group, "VOILUTFunction")) or "LINEAR"
    return voi_window(center, width, function)


def _rescale(header: Header, frame: int) -> Dataset:
    """The elements that `apply_modality_lut` needs for one frame; empty if there are none."""
    rescale = Dataset()
    rescale.file_meta = header.elements.file_meta
    if lut := header.elements.get("ModalityLUTSequence"):
        rescale.ModalityLUTSequence = lut
        return rescale
    slope, intercept = slope_intercept(header, frame)
    if slope is not None:
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, intercept
    return rescale


def _changes_values(rescale: Dataset) -> bool:
    """Whether a rescale gives other values than those stored."""
    if "ModalityLUTSequence" in rescale:
        return True
    return (rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)) != (1, 0)


def _is_hounsfield(header: Header, frame: int, rescale: Dataset) -> bool:
    """Whether the values of a frame are Hounsfield units.

    A rescale type decides where there is one. Where there is none, a CT with a rescale has them
    unless it is a localizer, a map or a screenshot, or too narrow for air and bone.

    Source: DICOM PS3.3 C.8.2.1.1.2 and C.11.1.1.2.
    """
    elements = header.elements
    if term(elements.get("Modality"), MODALITIES) != "CT" or not len(rescale):
        return False
    unit = first(header.of_frame(frame, "PixelValueTransformationSequence", "RescaleType"))
    if "ModalityLUTSequence" in rescale:
        unit = first(rescale.ModalityLUTSequence[0].get("ModalityLUTType")) or "US"
    if is_screenshot(header, frame):
        return False
    if unit:
        return unit in _UNITS_OF_CT or unit.startswith("HOUNSFIELD")
    if bits_stored(elements) <= 8 or kind_of(header, frame) is not None:
        return False
    return "LOCALIZER" not in image_type(header, frame)


def _padding(stored: np.ndarray, elements: Dataset) -> np.ndarray | None:
    """Where a frame has padding instead of an image, bool [H, W]; None if nowhere or everywhere.

    Source: DICOM PS3.3 C.7.5.1.1.2.
    """
    names = _PADDING_OF_REAL if stored.dtype.kind == "f" else _PADDING
    ends = []
    for keyword in names:
        value = number(elements.get(keyword))
        if value is not None and stored.dtype.kind != "f":
            value = _as_stored(value, elements)
        if value is not None:
            ends.append(value)
    if not ends or elements.get(names[0]) is None:
        return None
    found = (stored >= min(ends)) & (stored <= max(ends))
    return found if found.any() and not found.all() else None


_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")
_PADDING_OF_REAL = ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit")


def _as_stored(value: float, elements: Any) -> int | None:
    """A value of padding as stored values have it; None for one that they cannot have.

    Writers leave out its sign, or give it one: 63536 is -2000 in 16 bits.
    """
    bits, allocated = bits_stored(elements), int(elements.get("BitsAllocated") or 0)
    signed = bool(elements.get("PixelRepresentation"))
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    whole = int(value)
    for width in (allocated, bits):
        for candidate in (whole, whole - (1 << width), whole + (1 << width)):
            if low <= candidate <= high:
                return candidate
    return None
