"""The quick way through a DICOM header gives what pydicom's does, or leaves the file to it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dino_x.data.image import Unreadable
from dino_x.data.readers import dicom
from dino_x.data.readers.dicom_header import read_header_quickly
from dino_x.data.readers.dicom_quick import Unusual
from dino_x.data.readers.registry import refs
from tests.data.readers.fuzzing import BUNDLED, mutants
from tests.data.readers.test_dicom import transcode


def found(path):
    """What is found in a file, or the reason why nothing is."""
    try:
        return refs(path)
    except Unreadable as reason:
        return str(reason)


def found_by_pydicom(path, monkeypatch):
    def unusual(path):
        raise Unusual

    with monkeypatch.context() as patch:
        patch.setattr(dicom, "read_header_quickly", unusual)
        return found(path)


def is_plain(path):
    try:
        dicom._refs(path, read_header_quickly(path))
    except Unusual:
        return False
    except Unreadable:
        return True
    return True


def test_all_of_pydicoms_files_are_alike(monkeypatch):
    files = sorted(path for path in BUNDLED.rglob("*") if path.is_file())
    for path in files:
        assert found(path) == found_by_pydicom(path, monkeypatch), path.name
    assert sum(map(is_plain, files)) > 50


def test_damaged_files_are_alike(tmp_path, monkeypatch):
    plain = 0
    for name, content in mutants(400, seed=3, suffixes=["dcm"]):
        path = tmp_path / name
        path.write_bytes(content)
        assert found(path) == found_by_pydicom(path, monkeypatch), name
        plain += is_plain(path)
        path.unlink()
    assert plain > 100


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"Modality": "CT", "RescaleSlope": "1.50", "RescaleIntercept": "-1024 "},
        {"Modality": "MR", "EchoNumbers": "007", "EchoTime": "2.980", "DiffusionBValue": 1000.0},
        {"EchoNumbers": ["1", "2"], "EchoTime": ["1.0", "2.50"], "AcquisitionTime": "101112.5"},
        {
            "ImagePositionPatient": ["1", "2.5", "-3e1"],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        },
        {"WindowCenter": [40, 600], "WindowWidth": [400, 1500], "VOILUTFunction": "linear"},
        {"WindowCenter": "", "RescaleSlope": "", "Modality": "", "NumberOfFrames": None},
        {"PixelSpacing": ["0.5", "0.25"], "ImagerPixelSpacing": "0.1", "SliceThickness": "0"},
        {"PixelSpacing": ["0.5", ""], "SliceThickness": "1_0"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "BodyPartExamined": "chest"},
        {"PatientID": "Zoë", "IssuerOfPatientID": " H1 "},
        {"PatientID": "ANONYMOUS", "SeriesInstanceUID": "1.2.3"},
        {"RescaleType": "HU", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"},
        {"HighBit": 3, "BitsStored": 12},
    ],
)
def test_values_of_every_form_are_alike(write_dicom, monkeypatch, elements, syntax):
    from pydicom import config

    with monkeypatch.context() as patch:
        patch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
        patch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
        path = write_dicom(
            np.zeros((4, 5), np.uint16),
            **{"SpecificCharacterSet": "ISO_IR 100", "TransferSyntaxUID": syntax, **elements},
        )
    assert found(path) == found_by_pydicom(path, monkeypatch)


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_sequences_in_sequences_are_passed_over(write_dicom, monkeypatch, syntax, undefined):
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.Modality = "1", "US"
    outer.PurposeOfReferenceCodeSequence = Sequence([inner, inner])
    for dataset, keyword in ((outer, "PurposeOfReferenceCodeSequence"),):
        dataset[keyword].is_undefined_length = undefined
    for item in outer.PurposeOfReferenceCodeSequence:
        item.is_undefined_length_sequence_item = undefined
    sequence = Sequence([outer])
    path = write_dicom(
        np.zeros((4, 5), np.uint16),
        Modality="CT",
        TransferSyntaxUID=syntax,
        ReferencedImageSequence=sequence,
        RealWorldValueMappingSequence=Sequence([Dataset()]),
    )
    (ref,) = refs(path)
    assert is_plain(path)
    assert [ref] == found_by_pydicom(path, monkeypatch)
    assert ref.modality == "CT"


@pytest.mark.parametrize("size", [40_000, 400_000, 2_000_000])
def test_long_private_elements_are_passed_over(write_dicom, monkeypatch, size):
    path = write_dicom(np.zeros((4, 5), np.uint16), EncapsulatedDocument=bytes(size))
    dataset = Dataset()
    dataset.add_new(0x00091010, "OB", bytes(size))
    (ref,) = refs(path)
    assert [ref] == found_by_pydicom(path, monkeypatch)
    assert is_plain(path) == (size < 2**20)


def test_enhanced_files_are_left_to_pydicom():
    assert not is_plain(BUNDLED / "liver_1frame.dcm")


@pytest.mark.parametrize(
    "name", ["RLELossless", "JPEGLSLossless", "DeflatedExplicitVRLittleEndian"]
)
def test_every_encoding(write_dicom, rng, monkeypatch, name):
    path = transcode(write_dicom(rng.integers(0, 99, (9, 8), dtype=np.uint16)), name)
    assert found(path) == found_by_pydicom(path, monkeypatch)
    assert is_plain(path) == (not name.startswith("Deflated"))


def test_a_character_set_that_is_none_is_left_to_pydicom(write_dicom, monkeypatch):
    path = write_dicom(np.zeros((4, 5), np.uint16), SpecificCharacterSet="ISO_IR 192")
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", b"ISO\0\0\0\0192"))
    assert found(path) == found_by_pydicom(path, monkeypatch) == "damaged DICOM header"


def test_no_element_is_asked_for_that_is_not_there(write_dicom):
    """What only decoding needs is no silent None: it raises, and pydicom reads the file."""
    path = write_dicom(np.zeros((4, 5), np.uint16), PixelPaddingValue=3)
    elements = read_header_quickly(path).elements
    with pytest.raises(Unusual):
        elements.get("PixelPaddingValue")
    with pytest.raises(Unusual):
        _ = elements.Rows
    shutil.rmtree(Path(path).parent)
