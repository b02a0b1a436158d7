"""What the index is told by the header of a DICOM file."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dino_x.data.readers.registry import Unreadable, read, refs

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"  # never downloads


def oriented(place, directions):
    item, plane, position = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient, position.ImagePositionPatient = directions, place
    item.PlaneOrientationSequence, item.PlanePositionSequence = [plane], [position]
    return item


def test_refs_hold_what_an_index_needs(write_dicom, patient):
    tilt = np.deg2rad(20)
    directions = [1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))]
    elements = {
        "Modality": "CT", "PixelSpacing": [0.5, 0.25], "SliceThickness": 2.5,
        "BodyPartExamined": "chest", "RescaleSlope": 2, "RescaleIntercept": -1000,
        "ImagePositionPatient": [-100, 40, 70.5], "ImageOrientationPatient": directions,
        "SeriesInstanceUID": "1.2.3.4", "BitsStored": 12, "WindowCenter": 40, "WindowWidth": 401,
    }  # fmt: skip
    (ref,) = refs(write_dicom(np.zeros((4, 5), dtype=np.uint16), **elements))
    normal = np.cross(directions[:3], directions[3:])
    assert ref.position_mm == pytest.approx(normal @ [-100, 40, 70.5])
    assert (ref.modality, ref.body_part, ref.photometric) == ("CT", "CHEST", "MONOCHROME2")
    assert (ref.spacing_mm, ref.thickness_mm, ref.bits) == ((0.5, 0.25), 2.5, 12)
    assert (ref.slope, ref.intercept, ref.window) == (2, -1000, (-160.5, 239.5))
    assert ref.format == "DICOM"
    assert len(ref.patient) == len(ref.series) == 20
    assert ref.patient != ref.series


def test_patients_and_series_are_told_apart(write_dicom):
    def keys(**elements):
        (ref,) = refs(write_dicom(np.zeros((4, 5), dtype=np.uint8), **elements))
        return ref.patient, ref.series

    one = keys(PatientID="1", SeriesInstanceUID="1.2")
    assert keys(PatientID="1 ", SeriesInstanceUID="1.2") == one
    assert keys(PatientID="1", IssuerOfPatientID="A", SeriesInstanceUID="1.2")[0] != one[0]
    assert keys(PatientID="2", SeriesInstanceUID="1.2") == (keys(PatientID="2")[0], one[1])
    assert keys(PatientID="", SeriesInstanceUID=None) == (None, None)
    assert keys(PatientID=None) == (None, None)


def test_positions_may_differ_by_frame(write_dicom):
    axial, coronal = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
    frames = [
        oriented([5, 6, 7], axial),
        oriented([5, 6, 9.5], axial),
        oriented([5, 6, 7], coronal),
    ]
    path = write_dicom(
        np.zeros((3, 2, 2), np.uint8), NumberOfFrames=3, PerFrameFunctionalGroupsSequence=frames
    )
    assert [ref.position_mm for ref in refs(path)] == [7, 9.5, 6]


def test_dose_frames_lie_at_their_offsets(write_dicom):
    path = write_dicom(
        np.zeros((3, 2, 2), np.uint8), NumberOfFrames=3, GridFrameOffsetVector=[0, 2, 5],
        ImagePositionPatient=[0, 0, 10], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
    )  # fmt: skip
    assert [ref.position_mm for ref in refs(path)] == [10, 12, 15]


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"ImagePositionPatient": [1, 2, 3]},
        {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImagePositionPatient": [1, 2], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
    ],
)
def test_without_a_valid_position_there_is_none(write_dicom, elements):
    assert refs(write_dicom(np.zeros((2, 2), np.uint8), **elements))[0].position_mm is None


@pytest.mark.parametrize(
    "elements",
    [
        {"BitsStored": 33}, {"BitsAllocated": 17}, {"SamplesPerPixel": 5},
        {"PixelRepresentation": 7}, {"BitsAllocated": 0, "BitsStored": 0},
    ],
)  # fmt: skip
def test_impossible_bits_are_refused(write_dicom, elements):
    with pytest.raises(Unreadable, match="cannot have the bits that it says"):
        refs(write_dicom(np.zeros((4, 4), np.uint16), **elements))


def test_words_that_are_not_the_standards_are_dropped(write_dicom):
    words = {"Modality": "ZEBEDEE", "BodyPartExamined": "QUIXOTES KNEE"}
    path = write_dicom(np.zeros((4, 4), np.uint8), **words)
    assert (refs(path)[0].modality, refs(path)[0].body_part, read(path).modality) == (None,) * 3
