"""Files that are called images: the reason names what they are, and what to do."""

import bz2
import gzip
import struct
import zipfile

import nibabel
import numpy as np
import pytest

from dino_x.data.image import DEFAULT, Unreadable
from dino_x.data.index.catalog import update
from dino_x.data.readers.registry import looks_like_image, refs

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def nifti(tmp_path):
    path = tmp_path / "whole.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.dcm", "a.png"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (LFS, "not an image but a pointer of Git LFS: git lfs pull"),
        (
            b"/annex/objects/SHA256E-s99--ab.nii.gz\n",
            "not an image but a pointer of git-annex: datalad get",
        ),
        (b"\n<!DOCTYPE html>\n<html>404</html>", "not an image but a web page: download it again"),
        (b"<html><head>", "not an image but a web page"),
        (b"PK\x03\x04" + bytes(50), "not an image but a zip archive: unpack it first"),
        (bz2.compress(bytes(999)), "not an image but a bzip2 file: unpack it first"),
        (b"P5\n64 48\n255\n" + bytes(64 * 48), "PNM is not supported: save it as PNG"),
        (b"\0\0\0\x1cftypheic" + bytes(50), "HEIC, AVIF or a film is not supported"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5 is not supported: convert it"),
        (b"%PDF-1.4", "not an image but a PDF"),
        (gzip.compress(gzip.compress(bytes(500))), "gzip within gzip: gunzip it once"),
        (struct.pack("<i", 348) + bytes(344), "Analyze does not say which side is left"),
        (b"\xff\x4f\xff\x51" + bytes(50), "JPEG 2000 outside DICOM is not supported"),
        (b"something else", "(not an image|not a NIfTI file)$"),
        (gzip.compress(bytes(500)), "(not an image|not a NIfTI file)$"),
    ],
    ids=[
        "lfs", "annex", "html", "html5", "zip", "bzip2", "pnm", "heic", "hdf5", "pdf", "gzip twice",
        "analyze", "j2k", "text", "packed text",
    ],
)  # fmt: skip
def test_what_is_no_image_says_what_it_is(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=f"^{reason}"):
        refs(tmp_path / name)


def test_a_whole_nifti_is_read_whatever_it_is_packed_in_and_called(tmp_path, nifti):
    for name, content in (("a.nii.gz", nifti), ("b.nii", gzip.compress(nifti))):
        (tmp_path / name).write_bytes(content)
        assert len(refs(tmp_path / name)) == 6


def test_what_claims_no_image_is_passed_over_as_before(tmp_path):
    (tmp_path / "page.html").write_bytes(b"<html>")
    (tmp_path / "model.pt").write_bytes(LFS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "b")
    table = update([tmp_path], reading=DEFAULT).table
    assert table.records == []
    assert table.passed_over == {".html": 1, ".pt": 1, ".zip": 1}
    assert not any(looks_like_image(path) for path in tmp_path.iterdir())


def test_a_file_that_git_annex_has_not_fetched_says_so(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to("../.git/annex/objects/aa/bb/SHA256E-s9--c/c.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("nowhere")
    first, second = update([tmp_path], reading=DEFAULT).table.records
    assert first.unusable.startswith("is in git-annex and not on this disk: datalad get")
    assert second.unusable.startswith("cannot be opened")


@pytest.mark.parametrize("code", [1, 1536, 2048, 2304])
def test_a_data_type_that_is_not_read_is_not_called_damage(tmp_path, nifti, code):
    content = bytearray(nifti)
    content[70:72] = struct.pack("<h", code)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(Unreadable, match="^NIfTI of .* is not supported: save"):
        refs(tmp_path / "a.nii")
