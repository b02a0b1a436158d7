"""The quick way over a header finds what pydicom finds, or leaves the file to pydicom."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dino_x.data import dicom, dicom_header, dicom_walk
from dino_x.data.dicom_header import _PIXEL_DATA, _WANTED
from dino_x.data.dicom_values import value
from dino_x.data.image import Unreadable
from tests.data.fuzzing import BUNDLED, mutants

FILES = sorted(path for path in BUNDLED.glob("*.dcm"))


def said(path):
    """What is known of a file: its images, or the reason why not."""
    try:
        return dicom.refs(path)
    except Unreadable as reason:
        return str(reason)


@pytest.fixture
def by_pydicom(monkeypatch):
    def alone(path):
        with monkeypatch.context() as patch:
            patch.setattr(dicom_header, "walk", lambda *_: None)
            return said(path)

    return alone


def was_walked(path):
    with path.open("rb") as file:
        return dicom_walk.walk(file, _WANTED, _PIXEL_DATA) is not None


def test_files_of_pydicom(by_pydicom):
    walked = 0
    for path in FILES:
        assert said(path) == by_pydicom(path), path.name
        walked += was_walked(path)
    assert walked > len(FILES) / 3


def test_plain_values_are_those_of_pydicom():
    """All elements of all files, twice: as they stand in the file, and as pydicom converts them."""
    compared = 0
    for path in FILES:
        dataset = pydicom.dcmread(path, force=True, specific_tags=sorted(_WANTED))
        for tag in _WANTED:
            keyword = keyword_for_tag(tag)
            if tag not in dataset:
                assert value(dataset, keyword) is None
                continue
            raw = dataset.get_item(tag)
            if isinstance(raw, RawDataElement):
                quick = outcome(lambda d=dataset, k=keyword: value(d, k))
                slow = outcome(lambda d=dataset, k=keyword: d.get(k))
                slow = list(slow) if isinstance(slow, MultiValue) else slow
                quick = list(quick) if isinstance(quick, MultiValue) else quick
                assert quick == slow or (not quick and not slow), (path.name, keyword)
                compared += 1
    assert compared > 500


def outcome(convert):
    try:
        return convert()
    except Exception as error:
        return type(error)


@pytest.mark.parametrize(
    ("keyword", "data", "wanted"),
    [
        ("Rows", b"\x05\x01", 261),
        ("PixelSpacing", b"0.5\\.25 ", [0.5, 0.25]),
        ("RescaleSlope", b" 1e-3\0", 0.001),
        ("NumberOfFrames", b"12 ", 12),
        ("Modality", b"CT", "CT"),
        ("PhotometricInterpretation", b"MONOCHROME2 ", "MONOCHROME2"),
    ],
)
def test_values_one_by_one(keyword, data, wanted):
    tag = Tag(keyword)
    raw = RawDataElement(tag, None, len(data), data, 0, True, True)
    assert value(Dataset({tag: raw}), keyword) == wanted


def test_damaged_files(by_pydicom, tmp_path):
    path, walked, number = tmp_path / "a.dcm", 0, 0
    for name, content in mutants(500, seed=3):
        if name.endswith(".dcm"):
            number += 1
            path.write_bytes(content)
            if was_walked(path):
                walked += 1
                # Where pydicom, too, finds something wrong it may be something else.
                quick, slow = said(path), by_pydicom(path)
                assert quick == slow or {type(quick), type(slow)} == {str}, name
    assert walked > 0.2 * number


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_are_stepped_over(make_dicom, by_pydicom, tmp_path, syntax, undefined):
    """Nested ones, empty ones, and those that hold elements which are wanted at the top."""
    inner, outer = Dataset(), Dataset()
    inner.Rows, inner.PatientID = 99, "inside"
    outer.ReferencedImageSequence = [inner, Dataset(), inner]
    outer.Columns = 98
    dataset = make_dicom(np.zeros((5, 4), np.uint16), TransferSyntaxUID=syntax)
    dataset.ReferencedStudySequence = [outer, inner]
    dataset.ReferencedSeriesSequence = []
    for item in (dataset, outer):
        for element in item:
            if element.VR == "SQ":
                element.is_undefined_length = undefined
                for part in element.value:
                    part.is_undefined_length_sequence_item = undefined
    path = tmp_path / "a.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert was_walked(path)
    (ref,) = dicom.refs(path)
    assert (ref.height, ref.width) == (5, 4)
    assert [ref] == by_pydicom(path)


def test_a_header_longer_than_the_first_portion(make_dicom, by_pydicom, tmp_path):
    dataset = make_dicom(np.zeros((5, 4), np.uint16))
    block = dataset.private_block(0x0019, "A MAKER", create=True)
    block.add_new(1, "OB", b"\0" * 50_000)
    path = tmp_path / "a.dcm"
    dataset.save_as(path, enforce_file_format=True)
    assert was_walked(path)
    assert said(path) == by_pydicom(path)


def test_patients_of_both_ways_are_the_same(make_dicom, tmp_path, by_pydicom):
    dataset = make_dicom(
        np.zeros((5, 4), np.uint16), PatientID="Ä-7", SpecificCharacterSet="ISO_IR 192"
    )
    path = Path(tmp_path, "a.dcm")
    dataset.save_as(path, enforce_file_format=True)
    assert was_walked(path)
    assert said(path)[0].patient == by_pydicom(path)[0].patient is not None
