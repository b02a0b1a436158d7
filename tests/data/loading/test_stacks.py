"""Neighbours in 2.5D come from one stack: one orientation, kind of image, spacing and time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index
from dino_x.data.loading.neighbours import neighbours, refuse_uneven
from dino_x.data.loading.stacks import MIXED, UNEVEN, UNLIKE
from dino_x.data.readers.registry import refs

AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
SERIES = "1.2.3"


@pytest.fixture
def slice_at(write_dicom):
    """Write a slice of one series whose middle lies at `z` along the normal, and give its ref."""

    def write(name, z, orientation=AXIAL, **elements) -> ImageRef:
        normal = np.cross(orientation[:3], orientation[3:])
        more = {
            "Modality": "MR",
            "SeriesInstanceUID": SERIES,
            "ImagePositionPatient": [float(part) for part in normal * z],
            "ImageOrientationPatient": list(orientation),
            **elements,
        }
        return refs(write_dicom(np.arange(12, dtype=np.uint16).reshape(3, 4), name, **more))[0]

    return write


def all_repeat_themselves(rows) -> bool:
    return neighbours(rows).triples.tolist() == [[i, i, i] for i in range(len(rows))]


def test_planes_of_a_localizer_are_no_neighbours(slice_at):
    rows = [
        slice_at("a", -10.0, AXIAL),
        slice_at("b", 0.0, CORONAL),
        slice_at("c", 10.0, SAGITTAL),
    ]
    assert all_repeat_themselves(rows)
    assert neighbours(rows).alone == [0, 1, 2]


def test_each_orientation_of_a_series_is_a_stack(slice_at):
    rows = [
        slice_at(f"{n}{z}", 5.0 * z, plane)
        for n, plane in enumerate((AXIAL, CORONAL))
        for z in range(3)
    ]
    assert neighbours(rows).triples.tolist() == [
        [0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 4], [3, 4, 5], [4, 5, 5],
    ]  # fmt: skip


def test_rounding_of_directions_does_not_divide_a_stack(slice_at):
    tilted = (1, 0, 0, 0, 0.866025, -0.5)
    rounded = (1, 0, 0, 0, 0.866, -0.5002)
    rows = [slice_at("a", 0.0, tilted), slice_at("b", 3.0, rounded), slice_at("c", 6.0, tilted)]
    assert neighbours(rows).triples.tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]


@pytest.mark.parametrize(
    "other",
    [
        {"Modality": "PT"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"},  # a dose
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},  # a phase image of a magnitude
        {"EchoNumbers": 2, "EchoTime": 30},
        {"TemporalPositionIdentifier": 2},
        {"FrameOfReferenceUID": "1.2.99"},
    ],
)
def test_other_images_of_the_series_are_no_neighbours(slice_at, other):
    """The other image lies just where the next slice would, so that spacing does not tell it."""
    rows = [slice_at("a", 0.0), slice_at("b", 4.0), slice_at("c", 8.0, **other)]
    found = neighbours(rows)
    assert found.triples.tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 2]]
    assert found.alone == [2]


def test_slices_between_those_of_another_acquisition_are_no_neighbours(slice_at):
    """Two runs over one body, the second half a gap further: together they are evenly spaced."""
    first = [slice_at(f"a{n}", 4.0 * n, AcquisitionNumber=1, SliceThickness=4) for n in range(3)]
    second = [
        slice_at(f"b{n}", 4.0 * n + 2, AcquisitionNumber=2, SliceThickness=4) for n in range(3)
    ]
    found = neighbours([*first, *second])
    assert not found.refused
    assert found.triples.tolist() == [
        [0, 0, 1], [0, 1, 2], [1, 2, 2], [3, 3, 4], [3, 4, 5], [4, 5, 5],
    ]  # fmt: skip


def test_phases_at_the_same_places_are_stacks_of_their_own_if_the_header_tells_them(slice_at):
    phases = [
        slice_at(f"{phase}{n}", 4.0 * n, AcquisitionTime=f"10{phase}000", SliceThickness=4)
        for n in range(3)
        for phase in range(2)
    ]
    assert neighbours(phases).triples[[0, 2, 4]].tolist() == [[0, 0, 2], [0, 2, 4], [2, 4, 4]]
    unknown = [replace(ref, acquisition=None) for ref in phases]
    assert set(neighbours(unknown).refused.values()) == {UNEVEN}


def test_slices_of_several_acquisitions_in_between_each_other_are_refused(slice_at):
    """Slices excited at once, with wide gaps: neither is a stack, and nor are all together."""
    rows = [slice_at(f"{n}", 2.0 * n, AcquisitionNumber=n % 3, SliceThickness=2) for n in range(9)]
    assert set(neighbours(rows).refused.values()) == {MIXED}


def test_rotations_that_follow_each_other_are_one_stack(slice_at):
    rows = [slice_at(f"{n}", 2.0 * n, AcquisitionNumber=n // 2) for n in range(6)]
    assert not neighbours(rows).refused
    assert neighbours(rows).triples[2].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "other", [{"PixelSpacing": [0.5, 0.5]}, {"SliceThickness": 1.0}, {"PixelSpacing": None}]
)
def test_slices_of_another_spacing_are_refused(slice_at, other):
    usual = {"PixelSpacing": [0.9, 0.9], "SliceThickness": 5.0}
    rows = [slice_at(f"{n}", 5.0 * n, **usual) for n in range(2)]
    rows.append(slice_at("2", 10.0, **usual | other))
    assert set(neighbours(rows).refused.values()) == {UNLIKE}


def test_frames_of_an_enhanced_localizer_are_no_neighbours(write_dicom):
    frames = []
    for place, plane in (((0, 0, -9), AXIAL), ((0, 0, 0), CORONAL), ((9, 0, 0), SAGITTAL)):
        frame, position, orientation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient, orientation.ImageOrientationPatient = [*place], [*plane]
        frame.PlanePositionSequence = Sequence([position])
        frame.PlaneOrientationSequence = Sequence([orientation])
        frames.append(frame)
    path = write_dicom(
        np.zeros((3, 4, 5), np.uint16),
        NumberOfFrames=3,
        SeriesInstanceUID=SERIES,
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    rows = refs(path)
    assert len(rows) == 3
    assert all_repeat_themselves(rows)


def test_times_of_an_enhanced_file_are_stacks_of_their_own(write_dicom):
    frames = []
    for number in range(6):
        frame, content, position, plane = (Dataset() for _ in range(4))
        content.TemporalPositionIndex = number % 2 + 1
        position.ImagePositionPatient = [0, 0, number]  # evenly spaced across both times
        plane.ImageOrientationPatient = list(AXIAL)
        frame.FrameContentSequence = Sequence([content])
        frame.PlanePositionSequence = Sequence([position])
        frame.PlaneOrientationSequence = Sequence([plane])
        frames.append(frame)
    path = write_dicom(
        np.zeros((6, 4, 5), np.uint16),
        NumberOfFrames=6,
        SeriesInstanceUID=SERIES,
        PerFrameFunctionalGroupsSequence=Sequence(frames),
    )
    assert neighbours(refs(path)).triples[2:4].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_images_that_have_no_neighbours_are_said(slice_at):
    index = Index([slice_at("a", -10.0, AXIAL), slice_at("b", 0.0, CORONAL)])
    refuse_uneven(index)
    assert len(index.rows) == 2
    assert any("2 images are used in 2D" in note for note in index.notes)


def test_a_film_alone_is_nothing_to_say():
    index = Index([ImageRef(path=Path("film"), height=3, width=3, series="s", position_mm=1.0)])
    refuse_uneven(index)
    assert not index.notes
