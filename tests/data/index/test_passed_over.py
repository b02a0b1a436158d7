"""Nothing is passed over in silence: what is no image is counted by suffix, with a way out."""

import gzip
import io
import os
import tarfile

import pytest
from PIL import Image as Pillow
from rich.console import Console

from dino_x.commands.index import make_index
from dino_x.data.image import DEFAULT
from dino_x.data.index.catalog import update
from dino_x.data.index.index import build_index
from dino_x.data.index.passed_over import in_a_line, suffix_of, ways_out


def png() -> bytes:
    file = io.BytesIO()
    Pillow.new("L", (5, 4)).save(file, format="PNG")
    return file.getvalue()


def write_tar(path, mode="w", names=("a.png", "a.json", "b.png", "b.json")):
    with tarfile.open(path, mode) as tar:
        for name in names:
            data = png() if name.endswith(".png") else b"{}"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "image.png").write_bytes(png())
    return folder


def passed(folder, **more):
    return update([folder], reading=DEFAULT, **more).table.passed_over


def test_everything_that_is_not_taken_is_counted(folder):
    for name in ("a.csv", "b.csv", "brain.mnc", "README", "scan.hdr", "study.zip", "IM.001"):
        (folder / name).write_bytes(b"\x1f\x8b and so on")
    (folder / "a.dcm.gz").write_bytes(gzip.compress(b"nothing"))
    (folder / "b.DCM.GZ").write_bytes(gzip.compress(b"nothing"))
    (folder / ".hidden").write_text("")
    (folder / ".folder").mkdir()
    (folder / "DICOMDIR").write_bytes(b"")
    os.symlink("nowhere", folder / "link.txt")
    os.mkfifo(folder / "pipe")
    for number, mode in enumerate(("w:gz", "w:gz", "w:xz")):
        write_tar(folder / f"{number}.tar.{mode[2:]}", mode)
    assert passed(folder) == {
        ".csv": 2, ".mnc": 1, "without suffix": 1, ".hdr": 1, ".zip": 1, "numbered": 1,
        ".dcm.gz": 2, "hidden files": 1, "hidden folders": 1, "DICOMDIR": 1, "broken links": 1,
        "pipes and sockets": 1, ".tar.gz": 2, ".tar.xz": 1,
    }  # fmt: skip


def test_what_may_hold_images_comes_first_and_names_the_way_out():
    counts = {".csv": 40, ".tar.gz": 12, ".mnc": 3, ".txt": 1}
    assert in_a_line(counts) == "12 .tar.gz, 3 .mnc, 40 .csv, 1 .txt"
    assert ways_out(counts) == [
        "12 .tar.gz: unpack them to .tar (gunzip, zstd -d)",
        "3 .mnc: convert them to .nii.gz (mnc2nii)",
    ]


@pytest.mark.parametrize(
    "suffix",
    [".mnc", ".hdr", ".img", ".dcm.gz", ".tar.gz", ".zip", ".heic", ".czi", ".mp4", ".mat"],
)
def test_formats_with_images_have_a_way_out(suffix):
    assert len(ways_out({suffix: 1})) == 1


def test_a_name_is_no_suffix():
    assert suffix_of("scan.Zebedee Quixote") == "with odd suffixes"


def test_what_lies_beside_images_in_an_archive_is_counted_and_stays_counted(folder, tmp_path):
    write_tar(folder / "a.tar")
    (folder / "notes.txt").write_text("")
    out = tmp_path / "i.parquet"
    wanted = {".json": 2, ".txt": 1}
    assert passed(folder, kept_in=out) == wanted
    assert passed(folder, kept_in=out) == wanted  # the archive is not opened again
    assert build_index([out]).passed == wanted
    assert build_index([folder]).passed == wanted


def test_the_summary_of_an_index_says_it(folder, tmp_path):
    (folder / "brain.mnc").write_bytes(b"?")
    (folder / "a.csv").write_text("")
    said = io.StringIO()
    make_index([folder], tmp_path / "i.parquet", Console(file=said, width=200), reading=DEFAULT)
    assert "passed over 1 .mnc, 1 .csv" in said.getvalue()
    assert "1 .mnc: convert them to .nii.gz (mnc2nii)" in said.getvalue()
