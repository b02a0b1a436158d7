"""Headers that are slightly wrong and that every other tool reads; and reasons that are true."""

import struct

import nibabel
import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from dino_x.data.image import Unreadable
from dino_x.data.readers.registry import read, refs

VALUES = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def patched(path, offset, data):
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    path.write_bytes(raw)
    return path


@pytest.fixture
def volume(tmp_path):
    def volume(sform=None, qform=None, kind=nibabel.Nifti1Image):
        image = kind(VALUES, np.eye(4))
        image.set_sform(sform, 0 if sform is None else 1)
        image.set_qform(qform, 0 if qform is None else 1)
        nibabel.save(image, tmp_path / "a.nii")
        return tmp_path / "a.nii"

    return volume


TURNED = np.array([[0, -2.0, 0, 7], [-2, 0, 0, 8], [0, 0, -5, 9], [0, 0, 0, 1]])  # w is 0


def as_nibabel(path):
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    return [canonical[::-1, ::-1, number].T for number in range(canonical.shape[2])]


def assert_like(path, slices):
    for ref, wanted in zip(refs(path), slices, strict=True):
        np.testing.assert_allclose(read(ref).pixels[0], wanted)


@pytest.mark.parametrize("longer", [1e-6, 1e-5, 3e-4])
def test_a_quaternion_that_is_a_little_too_long(volume, longer):
    path = volume(qform=TURNED)
    wanted = as_nibabel(path)
    parts = np.array(struct.unpack("<fff", path.read_bytes()[256:268]))
    patched(path, 256, struct.pack("<fff", *(parts * (1 + longer))))
    assert_like(path, wanted)


def test_a_quaternion_of_version_2_that_is_a_little_too_long(volume):
    path = volume(qform=TURNED, kind=nibabel.Nifti2Image)
    wanted = as_nibabel(path)
    parts = np.array(struct.unpack("<ddd", path.read_bytes()[352:376]))
    patched(path, 352, struct.pack("<ddd", *(parts * (1 + 1e-6))))
    assert_like(path, wanted)


@pytest.mark.parametrize("rows", [np.zeros((3, 4)), np.full((3, 4), np.nan)])
def test_an_sform_of_zeros_with_a_good_qform(volume, rows):
    path = volume(qform=TURNED)
    wanted = as_nibabel(path)
    patched(path, 254, struct.pack("<h", 1))  # sform_code
    patched(path, 280, rows.astype("<f4").tobytes())
    assert_like(path, wanted)


def test_neither_sform_nor_qform_is_right(volume):
    path = patched(volume(), 252, struct.pack("<hhfff", 1, 1, 3, 3, 3))
    patched(path, 280, np.zeros(12, "<f4").tobytes())
    with pytest.raises(Unreadable, match="orientation is not valid"):
        refs(path)


def test_sizes_of_voxels_that_are_zero_or_negative(volume):
    path = patched(volume(), 80, struct.pack("<fff", 0, -2, 3))
    assert refs(path)[0].spacing_mm == (2, 1)
    assert len(refs(path)) == 6


def test_a_slope_whose_intercept_is_no_number(volume):
    path = patched(volume(), 112, struct.pack("<ff", 2, np.nan))
    images = np.stack([read(ref).pixels[0] for ref in refs(path)])
    assert (images.min(), images.max()) == (0, 2 * VALUES.max())


@pytest.mark.parametrize(
    ("written", "shape"),
    [("monochrome2 ", (1, 8, 9)), ("Monochrome1", (1, 8, 9)), ("rgb", (3, 8, 9)),
     ("ybr_full", (3, 8, 9)), (" MONOCHROME2", (1, 8, 9))],
)  # fmt: skip
def test_defined_terms_in_small_letters(write_dicom, rng, written, shape):
    size = (8, 9) if shape[0] == 1 else (8, 9, 3)
    pixels = rng.integers(0, 255, size, dtype=np.uint8)
    proper = write_dicom(pixels, "b.dcm", PhotometricInterpretation=written.strip().upper())
    path = write_dicom(pixels, PhotometricInterpretation=written, Modality="ct ")
    np.testing.assert_array_equal(read(path).pixels, read(proper).pixels)
    (ref,) = refs(path)
    assert (ref.photometric, ref.modality) == (written.strip().upper(), "CT")


def test_a_window_function_in_small_letters(write_dicom, rng):
    pixels = rng.integers(0, 4000, (8, 9), dtype=np.uint16)
    window = {"WindowCenter": 1500, "WindowWidth": 1001, "Modality": "DX"}
    path = write_dicom(pixels, VOILUTFunction="linear ", **window)
    assert read(path).window == (999.5, 1999.5)
    path = write_dicom(pixels, VOILUTFunction="linear_exact", **window)
    assert read(path).window == (999.5, 2000.5)


@pytest.mark.parametrize("skipped", [0, 128, 132])
def test_files_without_preamble(write_dicom, rng, skipped):
    pixels = rng.integers(0, 4000, (8, 9), dtype=np.uint16)
    path = write_dicom(pixels)
    path.write_bytes(path.read_bytes()[skipped:])
    np.testing.assert_array_equal(read(path).pixels[0], pixels)


def test_a_transfer_syntax_that_ends_in_a_blank(write_dicom, rng):
    pixels = rng.integers(0, 4000, (8, 9), dtype=np.uint16)
    path = write_dicom(pixels)
    name = ExplicitVRLittleEndian.encode()
    path.write_bytes(path.read_bytes().replace(name + b"\0", name + b" ", 1))
    np.testing.assert_array_equal(read(path).pixels[0], pixels)


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless is not supported: decompress it"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 .* is not supported: save its frames as PNG"),
        ("1.2.840.113619.5.22", "of a vendor is unknown: decompress it"),
    ],
)
def test_encodings_that_are_not_read_are_named_with_the_way_out(write_dicom, syntax, reason):
    path = write_dicom(np.zeros((8, 9), np.uint8))
    raw = path.read_bytes()
    at = raw.index(ExplicitVRLittleEndian.encode())
    old = ExplicitVRLittleEndian.encode() + b"\0"
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    raw = raw[: at - 2] + struct.pack("<H", len(new)) + new + raw[at + len(old) :]
    group = struct.unpack("<I", raw[140:144])[0] + len(new) - len(old)
    path.write_bytes(raw[:140] + struct.pack("<I", group) + raw[144:])
    with pytest.raises(Unreadable, match=reason):
        refs(path)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"BitsAllocated": 12, "BitsStored": 12}, "packed to 12 bits are not supported"),
        ({"SamplesPerPixel": 2}, "two samples a pixel are not supported"),
    ],
)
def test_values_that_are_not_read_are_not_called_damaged(write_dicom, elements, reason):
    path = write_dicom(np.zeros((8, 9), np.uint16), **elements)
    with pytest.raises(Unreadable, match=reason):
        refs(path)
