"""Everything that a tar holds is read, or said: links, files with holes, one tar behind another."""

import gzip
import io
import os
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from dino_x.data.image import DEFAULT
from dino_x.data.index.catalog import update
from dino_x.data.readers.registry import read
from dino_x.data.storage import tars


def as_npy(value):
    data = io.BytesIO()
    np.save(data, np.full((20, 30), value, np.uint8))
    return data.getvalue()


def packed(tmp_path, name, *arguments):
    subprocess.run(
        ["tar", *arguments, "-cf", tmp_path / name, "-C", tmp_path / "files", "."], check=True
    )
    return tmp_path / name


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.npy").write_bytes(as_npy(3))
    return tmp_path / "files"


def found(path):
    """The value of each image by its name, or the reason why there is none."""
    table = update([path], reading=DEFAULT, workers=1).table
    images = {}
    for record in table.records:
        name = os.path.relpath(record.path, path)
        images[name] = record.unusable or float(read(record.refs[0]).pixels.max())
    return images, table.passed_over


def test_a_hard_link_is_an_image_of_its_own_as_it_is_in_a_folder(tmp_path, files):
    os.link(files / "a.npy", files / "b.npy")
    os.link(files / "a.npy", files / "c.npy")
    images, passed = found(packed(tmp_path, "a.tar", "--sort=name"))
    assert images == {"a.npy": 3, "b.npy": 3, "c.npy": 3}
    assert passed == {}
    assert list(found(files)[0]) == ["a.npy", "b.npy", "c.npy"]


def test_a_hard_link_to_a_hard_link_and_to_nothing(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("./a.npy")
        info.size = len(as_npy(5))
        file.addfile(info, io.BytesIO(as_npy(5)))
        for name, target in (("b.npy", "a.npy"), ("c.npy", "./b.npy"), ("d.npy", "gone.npy")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            file.addfile(link)
    images, _ = found(tmp_path / "a.tar")
    assert images.pop("d.npy").startswith("a link in a tar to a file that is not in it")
    assert images == {"a.npy": 5, "b.npy": 5, "c.npy": 5}


def test_a_symbolic_link_is_the_file_it_leads_to_or_is_said(tmp_path, files):
    (files / "sub").mkdir()
    (files / "sub" / "inside.npy").symlink_to("../a.npy")
    (files / "outside.npy").symlink_to(tmp_path / "elsewhere.npy")
    (files / "README").symlink_to("nowhere")
    images, passed = found(packed(tmp_path, "a.tar"))
    assert images.pop("outside.npy").startswith("a link in a tar to a file that is not in it")
    assert images == {"a.npy": 3}
    assert passed == {"without suffix": 1}


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_file_with_holes_is_said(tmp_path, files, form):
    data = as_npy(0)
    with (files / "holes.npy").open("wb") as file:
        file.write(data[:128])
        file.truncate(2**20)
    images, _ = found(packed(tmp_path, "a.tar", "--sparse", f"--format={form}"))
    if isinstance(images["holes.npy"], float):
        pytest.skip("this file system keeps no holes")
    assert images["a.npy"] == 3
    assert images["holes.npy"].startswith("a file with holes, as `tar --sparse` packs it")


def tar_of(**values):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for name, value in values.items():
            info = tarfile.TarInfo(f"{name}.npy")
            info.size = len(as_npy(value))
            file.addfile(info, io.BytesIO(as_npy(value)))
    return data.getvalue()


def test_tars_one_behind_another_are_read_as_one(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of(a=1, b=2) + tar_of(c=3) + tar_of(d=4))
    assert found(tmp_path / "a.tar")[0] == {"a.npy": 1, "b.npy": 2, "c.npy": 3, "d.npy": 4}


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (b"something else" * 100, "1,400 bytes that are no tar follow its end"),
        (bytes(3 * tars._MOST_ZEROS), "bytes of zeros follow its end"),
        (bytes(2**18), None),
    ],
)
def test_what_follows_a_tar_is_said(tmp_path, behind, reason):
    (tmp_path / "a.tar").write_bytes(tar_of(a=1) + behind)
    images, _ = found(tmp_path / "a.tar")
    assert images.pop("a.npy") == 1
    assert (reason is None) == (images == {})
    assert reason is None or reason in images["."]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        (lambda data: gzip.compress(data), "not a tar but a compressed one: unpack it"),
        (lambda data: as_zip(data), "not a tar but a zip archive: unpack it"),
        (lambda data: b"", "truncated or damaged tar: it is empty"),
    ],
    ids=["gzip", "zip", "empty"],
)
def test_another_file_that_is_called_a_tar_says_what_it_is(tmp_path, pack, reason, named):
    (tmp_path / "a.tar").write_bytes(pack(tar_of(a=1)))
    (tmp_path / "b.npy").write_bytes(as_npy(1))
    path = tmp_path / "a.tar" if named else tmp_path
    images, _ = found(path)
    assert images["." if named else "a.tar"].startswith(reason)


def as_zip(data):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.tar", data)
    return packed.getvalue()
