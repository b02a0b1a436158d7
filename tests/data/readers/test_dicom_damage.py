"""Damaged DICOM, DICOM that lies, and what must never leave a header."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, MPEG2MPML

from dino_x.data.readers import dicom_bounds
from dino_x.data.readers.registry import Unreadable, read, refs
from tests.data.conftest import transcode

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"  # never downloads


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "JPEG2000Lossless", "RLELossless"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated_file_is_found_by_its_header(write_dicom, rng, syntax, share):
    whole = transcode(write_dicom(rng.integers(0, 4096, (64, 64), dtype=np.uint16)), syntax)
    cut = whole.with_name("cut.dcm")
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated"):
        refs(cut)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Rows": 60000, "Columns": 60000}, "more than"),
        ({"Rows": 0}, "no pixels"),
        ({"Rows": None}, "no pixels"),
        ({"NumberOfFrames": 2**31 - 1}, "truncated"),
        ({"NumberOfFrames": 3, "TransferSyntaxUID": JPEG2000}, "1 of 3 frames"),
        ({"TransferSyntaxUID": MPEG2MPML}, "MPEG2.* not supported"),
    ],
)
def test_header_that_cannot_be_true_is_refused_before_decoding(write_dicom, elements, reason):
    pixels = np.zeros((4, 4), dtype=np.uint8)
    if "TransferSyntaxUID" in elements:
        elements = {**elements, "PixelData": encapsulate([b"\0" * 16])}
    path = write_dicom(pixels, **elements)
    with pytest.raises(Unreadable, match=reason):
        refs(path)


def test_unknown_transfer_syntax_is_not_quoted(write_dicom):
    path = write_dicom(np.zeros((4, 4), dtype=np.uint8))
    content = path.read_bytes()
    assert content.count(b"1.2.840.10008.1.2.1\0") == 1
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"Zebedee^Quixote.....", 1))
    with pytest.raises(Unreadable, match="^unknown transfer syntax$"):
        refs(path)


def test_deflated_bomb_is_refused(write_dicom, monkeypatch):
    path = transcode(
        write_dicom(np.zeros((500, 500), dtype=np.uint16)), "DeflatedExplicitVRLittleEndian"
    )
    assert path.stat().st_size < 10_000
    assert len(refs(path)) == 1
    monkeypatch.setattr(dicom_bounds, "_MOST_INFLATED", 200_000)
    with pytest.raises(Unreadable, match="inflates"):
        refs(path)


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_dicom_without_pixels(name):
    with pytest.raises(Unreadable, match="no pixel data"):
        refs(BUNDLED / name)


def test_damaged_compressed_pixels(write_dicom):
    whole = transcode(write_dicom(np.zeros((48, 32), dtype=np.uint8)), "JPEG2000Lossless")
    content = bytearray(whole.read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 60
    content[at : at + 40] = b"\x01" * 40
    whole.write_bytes(content)
    with pytest.raises(Unreadable, match="damaged pixel data"):
        read(whole)


@pytest.mark.parametrize(
    ("syntax", "marker", "at", "size"),
    [
        ("JPEG2000Lossless", b"\xff\x4f\xff\x51", 8, b"\0\0\xea\x60\0\0\xea\x60"),
        ("JPEGLSLossless", b"\xff\xf7", 5, b"\xea\x60\xea\x60"),
        ("JPEGLosslessProcess14_1", b"\xff\xc3", 5, b"\xea\x60\xea\x60"),
    ],
)
def test_an_image_that_is_not_of_the_headers_size_is_refused_unseen(
    write_dicom, syntax, marker, at, size
):
    """A decoder would ask for the memory, or, of JPEG-LS, end the process."""
    path = transcode(write_dicom(np.zeros((48, 32), dtype=np.uint16)), syntax)
    content = bytearray(path.read_bytes())
    at += content.index(marker, content.index(b"\xe0\x7f\x10\0"))
    content[at : at + len(size)] = size
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="not of the size that the header says|no valid header"):
        refs(path)


def test_no_patient_value_leaves_a_file(write_dicom, rng, patient, capfd, caplog):
    """Whole, cut at many places, and with patient values where numbers should be."""
    caplog.set_level(logging.DEBUG)
    whole = write_dicom(
        rng.integers(0, 4096, (16, 16), dtype=np.uint16), Modality="CT"
    ).read_bytes()
    planted = [whole[:cut] for cut in range(140, len(whole), 23)]
    name = patient["PatientName"].encode()
    for element in (b"\x28\x00\x10\x00", b"\x28\x00\x04\x00", b"\x08\x00\x60\x00", b"US\x02\x00"):
        at = whole.index(element) + 8
        planted.append(whole[:at] + name + whole[at + len(name) :])
    path = write_dicom(np.zeros((2, 2), dtype=np.uint8), "planted.dcm")
    results, refused = [], []
    with warnings.catch_warnings(record=True) as warned:
        for content in [whole, *planted]:
            path.write_bytes(content)
            try:
                results.append(repr(read(path).window) + repr(refs(path)))
            except Unreadable as unreadable:
                refused.append(unreadable)
    assert all(error.__context__ is None or error.__suppress_context__ for error in refused)
    results += [str(error) for error in refused]
    results += [str(warning.message) for warning in warned]
    everything = "\n".join([*results, caplog.text, *capfd.readouterr()])
    assert "truncated" in everything
    for value in patient.values():
        assert value not in everything
