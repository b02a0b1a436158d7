"""Which elements of a DICOM file are read. None of them identifies a patient.

Those of `IDENTIFIERS` become salted keys in `dicom_header`, and go no further.
"""

from __future__ import annotations

from pydicom.tag import BaseTag, Tag


def _keywords(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What a header alone is asked for.
OF_HEADERS = _keywords(
    """
    SOPClassUID ImageType ComplexImageComponent Modality BodyPartExamined Rows Columns
    NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit
    PixelRepresentation RescaleSlope RescaleIntercept RescaleType WindowCenter WindowWidth
    VOILUTFunction PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness
    ImagePositionPatient ImageOrientationPatient GridFrameOffsetVector FrameOfReferenceUID
    TemporalPositionIdentifier EchoNumbers EchoTime DiffusionBValue AcquisitionNumber
    AcquisitionTime TriggerTime RealWorldValueMappingSequence PresentationLUTShape
    """
)

# Sequences that are asked for, of files that have more than the classic ones.
SEQUENCES = _keywords(
    """
    ModalityLUTSequence SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
    """
)

# What values are decoded with.
OF_VALUES = _keywords(
    """
    PlanarConfiguration PixelPaddingValue PixelPaddingRangeLimit
    FloatPixelPaddingValue FloatPixelPaddingRangeLimit
    RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
    BluePaletteColorLookupTableDescriptor RedPaletteColorLookupTableData
    GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    SegmentedRedPaletteColorLookupTableData SegmentedGreenPaletteColorLookupTableData
    SegmentedBluePaletteColorLookupTableData
    """
)

ELEMENTS: list[BaseTag | int] = [Tag(word) for word in (*OF_HEADERS, *SEQUENCES, *OF_VALUES)]
IDENTIFIERS: list[BaseTag | int] = [
    Tag(keyword) for keyword in ("PatientID", "IssuerOfPatientID", "SeriesInstanceUID")
]
PIXEL_DATA = frozenset(
    int(Tag(keyword)) for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
)
