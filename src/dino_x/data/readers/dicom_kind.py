"""What a DICOM file shows, if it is not a plain view of anatomy: see `image.KINDS`.

Source: DICOM PS3.3 C.7.6.1.1.2 (image type), C.8.2.1.1.1 (CT), C.8.3.1.1.1 (MR), C.8.12.4.1.1
(slides), PS3.4 B.5 (SOP classes). Vendors add words of their own to the image type.
"""

from __future__ import annotations

from typing import Any

from pydicom.uid import UID, UID_dictionary

from dino_x.data.image import WITHOUT_IMAGE
from dino_x.data.readers.dicom_forms import remarks_on_form
from dino_x.data.readers.dicom_header import Header
from dino_x.data.readers.dicom_place import image_type
from dino_x.data.readers.dicom_terms import IMAGE_TYPES, MODALITIES, first, number, term

_BY_SOP_CLASS = {
    "SegmentationStorage": "segmentation",
    "LabelMapSegmentationStorage": "segmentation",
    "HeightMapSegmentationStorage": "segmentation",
    "RTDoseStorage": "dose",
    "ParametricMapStorage": "map",
    "OphthalmicThicknessMapStorage": "map",
    "CornealTopographyMapStorage": "map",
    "WideFieldOphthalmicPhotography3DCoordinatesImageStorage": "map",
    "DeformableSpatialRegistrationStorage": "map",
}
_BY_MODALITY = {"SEG": "segmentation", "RTDOSE": "dose", "SR": "screenshot", "DOC": "screenshot"}

_LOCALIZER = {"LOCALIZER", "LOCALISER", "SCOUT", "SURVEY", "TOPOGRAM"}
_SCREEN = {"SCREEN SAVE", "SCREENSHOT", "SCREEN SHOT", "SCREEN_SAVE", "SCREEN CAPTURE", "SCREEN"}
_MAP = {
    "ADC", "EADC", "FA", "COLFA", "RA", "VR_MAP", "TENSOR", "MD", "CBF", "CBV", "RCBF", "RCBV",
    "RELCBF", "RELCBV", "CORRELCBV", "RELMTT", "MTT", "TTP", "TMAX", "PBP", "KTRANS", "KEP", "VE",
    "VP", "T1 MAP", "T2 MAP", "T2 STAR MAP", "T1_MAP", "T2_MAP", "T2_STAR_MAP", "R2_MAP", "R2 MAP",
    "R2STAR_MAP", "B0 MAP", "B1 MAP", "FIELD_MAP", "T_TEST", "T-TEST", "FMRI", "MR_MAP", "ADC_MAP",
    "PERFUSION_MAP", "FAT_FRACTION", "FF", "STIFFNESS", "WAVE", "CONFIDENCE", "DIFFUSION_MAP",
    "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MAT_FRACTIONAL", "MAT_SPECIFIC", "PROP_MAP",
    "IODINE_MAP", "IODINE MAP", "MAP",
}  # fmt: skip
# Parts of complex numbers, which have these names in MR alone.
_MAP_OF_MR = {
    "P", "PHASE", "PHASE MAP", "PHASE_MAP", "VELOCITY", "R", "REAL", "I", "IMAGINARY",
}  # fmt: skip
_MAP_UNITS = {"Z_EFF", "ED", "EDW", "MGML", "PCT", "OD", "MM2/S", "10^-6 MM2/S"}
_SLIDE_LABEL = {"LABEL", "OVERVIEW"}
# A frame of these modalities lies somewhere in the patient, and says where.
_CROSS_SECTIONS = {"CT", "MR", "PT"}

# SOP classes whose instances are images although their names do not say so.
_IMAGES_BY_ANOTHER_NAME = {*_BY_SOP_CLASS, "MultiFrameTrueColorSecondaryCaptureImageStorage"}
_NO_IMAGES = {
    "AU", "ECG", "EEG", "EMG", "EOG", "EPS", "HD", "KO", "PLAN", "PR", "REG", "RESP", "RTPLAN",
    "RTRECORD", "RTSTRUCT", "RTINTENT", "RTRAD", "RWV", "SMR", "SR", "SRF", "DOC", "FID",
    "CTPROTOCOL", "XAPROTOCOL", "ASMT", "KER", "LEN", "IOL", "VA", "AR", "PA", "STAIN", "M3D",
    "TEXTUREMAP",
}  # fmt: skip


def sop_class_of(elements: Any) -> str | None:
    """The keyword of a file's SOP class, such as "CTImageStorage"; None if it is not standard."""
    uid = UID(str(elements.get("SOPClassUID") or "").strip(" \0"))
    return (uid.keyword or None) if uid in UID_dictionary else None


def image_type_of(header: Header, frame: int) -> str | None:
    """The known words of a frame's image type, with spaces in between; None if there are none."""
    known = [word.replace(" ", "_") for word in image_type(header, frame) if word in IMAGE_TYPES]
    return " ".join(known) or None


def kind_of(header: Header, frame: int) -> str | None:
    """What a frame shows if it is not a plain view of anatomy, see `image.KINDS`; else None."""
    elements = header.elements
    modality = term(elements.get("Modality"), MODALITIES)
    by_class = _BY_SOP_CLASS.get(sop_class_of(elements) or "")
    if by_class or (modality or "") in _BY_MODALITY:
        return by_class or _BY_MODALITY[modality or ""]
    if is_screenshot(header, frame):
        return "screenshot"
    words = set(image_type(header, frame))
    if words & _LOCALIZER:
        return "localizer"
    if "MOSAIC" in words:
        return "mosaic"
    if modality == "SM" and words & _SLIDE_LABEL:
        return "slide_label"
    return "map" if _is_map(header, frame, modality, words) else None


def is_screenshot(header: Header, frame: int) -> bool:
    """Whether a frame is a picture of a screen, such as a report of the dose of a CT."""
    words = image_type(header, frame)
    if _SCREEN & set(words) or any(word.endswith(" PROT") for word in words):
        return True  # pages of text, such as the patient protocol of a scanner
    captured = "SecondaryCapture" in (sop_class_of(header.elements) or "")
    section = term(header.elements.get("Modality"), MODALITIES) in _CROSS_SECTIONS
    if not (captured and section and "SECONDARY" in words):
        return False
    return header.of_frame(frame, "PlanePositionSequence", "ImagePositionPatient") in (None, "")


def without_image(elements: Any) -> str | None:
    """What a file without pixels is, if it is one that never has any; None if it is damaged.

    Returns: a fixed phrase, such as "no pixel data: Basic Text SR Storage".
    """
    uid = UID(str(elements.get("SOPClassUID") or "").strip(" \0"))
    keyword = sop_class_of(elements)
    modality = term(elements.get("Modality"), MODALITIES)
    if keyword is not None:
        is_image = "ImageStorage" in keyword or keyword in _IMAGES_BY_ANOTHER_NAME
        return None if is_image else f"{WITHOUT_IMAGE} {uid.name}"
    if modality in _NO_IMAGES:
        return f"{WITHOUT_IMAGE} {modality}"
    return f"{WITHOUT_IMAGE} a private SOP class" if uid and uid.is_private else None


def remark_of(header: Header) -> str | None:
    """What a header leaves open, as fixed phrases with "; " in between; None if nothing does."""
    elements = header.elements
    found = remarks_on_form(elements)
    if header.too_long:
        found.append("more pixel data than its number of frames: the first frames are read")
    groups = elements.get("PerFrameFunctionalGroupsSequence")
    if groups and len(groups) != header.frames:
        found.append("not as many functional groups as frames: some have the values of the file")
    if "RealWorldValueMappingSequence" in elements and "RescaleSlope" not in elements:
        found.append("physical values only by a real-world mapping: stored values are read")
    high, stored = number(elements.get("HighBit")), number(elements.get("BitsStored"))
    if high is not None and stored is not None and high != stored - 1:
        found.append(
            "HighBit is not BitsStored - 1: whether bits are moved follows from the values"
        )
    if (sop_class_of(elements) or "").endswith("ForProcessing"):
        found.append("values of a detector (FOR PROCESSING), not those that a display shows")
    if header.nobody:
        found.append("PatientID is a placeholder: patients are not known")
    return "; ".join(found) or None


def _is_map(header: Header, frame: int, modality: str | None, words: set[str]) -> bool:
    if modality not in _CROSS_SECTIONS:
        return False
    frame_type, keyword = "MRImageFrameTypeSequence", "ComplexImageComponent"
    if first(header.of_frame(frame, frame_type, keyword)) in ("PHASE", "REAL", "IMAGINARY"):
        return True
    group = "PixelValueTransformationSequence"
    if first(header.of_frame(frame, group, "RescaleType")) in _MAP_UNITS:
        return True
    return bool(words & _MAP) or (modality == "MR" and bool(words & _MAP_OF_MR))
