"""Where a DICOM frame lies, and which other frames it makes a stack with.

Neighbours in 2.5D come from one stack (loading/neighbours.py): frames of one orientation and kind,
taken at one time. What tells stacks apart becomes salted keys here, as it can hold text that people
typed, identifiers and times of day.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from dino_x.data.identity import key
from dino_x.data.readers.dicom_header import Header
from dino_x.data.readers.dicom_terms import numbers

# Where the type of a frame stands, in enhanced files of each modality.
FRAME_TYPES = (
    "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence",
    "PETFrameTypeSequence",
    "XAXRFFrameCharacteristicsSequence",
)
# What differs between the stacks of a series: (the sequence of enhanced files, the element).
_APART = (
    ("FrameContentSequence", "StackID"),
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("TemporalPositionSequence", "TemporalPositionTimeOffset"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("", "FrameOfReferenceUID"),
    ("", "TemporalPositionIdentifier"),
    ("", "EchoNumbers"),
    ("", "EchoTime"),
)
_OF_AN_ACQUISITION = ("AcquisitionNumber", "AcquisitionTime", "TriggerTime")


def position_of(header: Header, frame: int) -> float | None:
    """How far the middle of the first pixel lies along the normal of the slice, in mm.

    Source: DICOM PS3.3 C.7.6.2.1.1 (position, orientation), C.8.8.3.2 (offsets of dose frames).
    """
    place = numbers(header.of_frame(frame, "PlanePositionSequence", "ImagePositionPatient"), 3)
    directions = _directions(header, frame)
    if place is None or directions is None:
        return None
    (a, b, c), (d, e, f) = directions[:3], directions[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)  # np.cross would take longest of all
    length = math.hypot(*normal)
    if not 0 < length < math.inf:
        return None
    position = sum(p * n for p, n in zip(place, normal, strict=True)) / length
    offsets = numbers(header.elements.get("GridFrameOffsetVector"), header.frames)
    if offsets is not None:  # relative to the first, or for one patient orientation absolute
        position += offsets[frame] - offsets[0]
    return position if math.isfinite(position) else None


def orientation_of(header: Header, frame: int) -> tuple[float, ...] | None:
    """The directions of rows and of columns in the patient, six numbers; None if unknown."""
    directions = _directions(header, frame)
    return None if directions is None else _shared(*(round(part, 4) for part in directions))


def stack_of(header: Header, frame: int) -> str | None:
    """A salted key that is equal for the frames of a series that may be neighbours of each other.

    It stands for the kind of image, its echo, its place in a series of times and the like; not for
    orientation, which headers round.
    """
    elements = header.elements
    facts = [str(elements.get("SOPClassUID") or ""), "\\".join(image_type(header, frame))]
    facts += [str(header.of_frame(frame, group, keyword) or "") for group, keyword in _APART]
    return key("stack", "stack", *facts)


def acquisition_of(header: Header, frame: int) -> str | None:
    """A salted key of the acquisition that a frame comes from; None if the header does not say."""
    facts = [str(header.elements.get(keyword) or "") for keyword in _OF_AN_ACQUISITION]
    return key("acquisition", "acquisition", *facts) if any(facts) else None


def image_type(header: Header, frame: int) -> list[str]:
    """The words of the frame's type (Image Type, Frame Type), as they stand in the file."""
    words: Any = None
    for group in FRAME_TYPES:
        words = words or header.own_of_frame(frame, group, "FrameType")
    words = words or header.elements.get("ImageType") or ()
    words = [words] if isinstance(words, str) else words
    return [str(word).strip(" \0").upper() for word in words]


def _directions(header: Header, frame: int) -> list[float] | None:
    group, keyword = "PlaneOrientationSequence", "ImageOrientationPatient"
    return numbers(header.of_frame(frame, group, keyword), 6)


@lru_cache(maxsize=4096)
def _shared(*directions: float) -> tuple[float, ...]:
    """The numbers as one object for all frames that have them."""
    return directions
