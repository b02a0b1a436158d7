"""Which forms of values are read from a DICOM file, and what stands for elements that it lacks."""

from __future__ import annotations

from typing import Any

from dino_x.data.image import Unreadable
from dino_x.data.readers.dicom_terms import PHOTOMETRICS, term

# Colours that are hardly used any more: nothing that decodes them here makes RGB of them.
_OTHER_COLOURS = {
    "HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB",
}  # fmt: skip


def check_values(elements: Any, compressed: bool) -> None:
    """Raise Unreadable for values that cannot be, or that are not read.

    GDCM ends the process at some impossible numbers of bits.

    Args:
        elements: the header.
        compressed: whether the transfer syntax compresses each frame.

    Source: DICOM PS3.3 C.7.6.3.1.
    """
    _check_bits(elements)
    samples = _samples(elements)
    colours = term(elements.get("PhotometricInterpretation"), PHOTOMETRICS)
    if colours in _OTHER_COLOURS:
        raise Unreadable(f"colours as {colours} are not supported: save it as RGB")
    if samples == 4:
        raise Unreadable("four samples a pixel are not supported: save it as RGB")
    if samples == 3 and compressed and not elements.get("PhotometricInterpretation"):
        raise Unreadable("its header does not say what its colours are: add it, or save it as RGB")


def _samples(elements: Any) -> int:
    return int(elements.get("SamplesPerPixel") or 1)


def _check_bits(elements: Any) -> None:
    allocated = int(elements.get("BitsAllocated") or 0)
    stored = int(elements.get("BitsStored") or allocated)
    samples = _samples(elements)
    signed = int(elements.get("PixelRepresentation") or 0)
    if 8 < allocated < 16:
        raise Unreadable(f"values packed to {allocated} bits are not supported: convert to 16 bits")
    if samples == 2:
        raise Unreadable("two samples a pixel are not supported: save each as an image")
    possible = allocated == 1 or (allocated % 8 == 0 and 8 <= allocated <= 64)
    if not possible or not 1 <= stored <= allocated or samples not in (1, 3, 4) or signed > 1:
        raise Unreadable("damaged DICOM header: its values cannot have the bits that it says")
    if allocated not in (1, 8, 16, 32, 64):
        raise Unreadable(f"values of {allocated} bits are not supported: convert to 16 or 32 bits")


def stand_ins(elements: Any) -> dict[str, Any]:
    """What stands for the elements that a header must have and lacks, as pydicom names options.

    Other readers take the same: one sample, no sign, samples of a pixel side by side.
    """
    found: dict[str, Any] = {}
    if elements.get("SamplesPerPixel") is None:
        found["samples_per_pixel"] = 1
    if elements.get("PixelRepresentation") is None:
        found["pixel_representation"] = 0
    if elements.get("PlanarConfiguration") is None and _samples(elements) > 1:
        found["planar_configuration"] = 0
    if not elements.get("PhotometricInterpretation"):
        found["photometric_interpretation"] = "RGB" if _samples(elements) == 3 else "MONOCHROME2"
    return found


def remarks_on_form(elements: Any) -> list[str]:
    """What a header leaves open about its values, as fixed phrases."""
    found = []
    colours = term(elements.get("PhotometricInterpretation"), PHOTOMETRICS)
    if not elements.get("PhotometricInterpretation"):
        found.append("no PhotometricInterpretation: read as MONOCHROME2 or RGB")
    if elements.get("SamplesPerPixel") is None:
        found.append("no SamplesPerPixel: read as one channel")
    whole = elements.get("BitsStored") is not None  # real numbers have none
    if elements.get("PixelRepresentation") is None and whole:
        found.append("no PixelRepresentation: values are read without a sign")
    shape = str(elements.get("PresentationLUTShape") or "").strip(" \0").upper()
    if (colours, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        found.append("PresentationLUTShape contradicts PhotometricInterpretation, which counts")
    return found
