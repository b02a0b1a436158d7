import os

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from dino_x.data.image import MAX_PIXELS, Image, ImageRef
from dino_x.data.readers import registry
from dino_x.data.readers.registry import Unreadable, looks_like_image, read, refs


@pytest.fixture
def grey(rng):
    return rng.integers(0, 256, (9, 7), dtype=np.uint8)


@pytest.mark.parametrize("name", ["scan.jpg", "scan.dcm", "scan", "1.2.840.113619.2", "a.b.c"])
def test_content_decides_and_not_the_name(tmp_path, grey, name):
    path = tmp_path / name
    with path.open("wb") as file:
        Pillow.fromarray(grey).save(file, format="PNG")
    np.testing.assert_array_equal(read(path).pixels[0], grey)


def test_every_format_is_told_from_the_others(tmp_path, grey, write_dicom):
    for suffix in ("png", "bmp", "tif"):
        Pillow.fromarray(grey).save(tmp_path / f"a.{suffix}")
    tifffile.imwrite(tmp_path / "big.tif", grey, bigtiff=True)
    write_dicom(grey, "a.dcm")
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 5
    for path in paths:
        assert looks_like_image(path)
        np.testing.assert_array_equal(read(path).pixels[0], grey, err_msg=path.name)


def test_dicom_whose_preamble_begins_a_tiff_is_dicom(write_dicom, grey):
    path = write_dicom(grey)
    content = path.read_bytes()
    path.write_bytes(b"II*\0" + content[4:])
    np.testing.assert_array_equal(read(path).pixels[0], grey)


def test_refs_say_what_read_will_give(write_png):
    (ref,) = refs(write_png("a.png", shape=(5, 8, 3)))
    assert (ref.frame, ref.height, ref.width) == (0, 5, 8)
    assert read(ref).pixels.shape == (3, 5, 8)


@pytest.mark.filterwarnings("ignore:End of file reached")  # pytest resets the filter for pydicom
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"a,b,c\n1,2,3\n", "not an image"),
        (b"BM and other words that are not a bitmap", "not an image"),
        (b"%PDF-1.7 something" * 20, "not an image"),
        (b"PK\x03\x04" + b"\0" * 400, "not an image"),
        (b"\x08\x00", "not an image"),
        (b"GIF89a" + b"\0" * 20, "^GIF is not supported: save its frames as PNG$"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP is not supported: save it as PNG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 outside DICOM .*save it as PNG or TIFF"),
        (b"NRRD0004\ntype: short\n", "damaged NRRD header"),
        (b"ObjectType = Image\nNDims = 3\n", "truncated MetaImage header"),
        (b"\0" * 344 + b"n+1\0", "truncated NIfTI|damaged NIfTI|no pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "damaged|truncated"),
        (b"\xff\xd8\xff" + b"\0" * 20, "damaged|truncated"),
        (b"II*\0" + b"\xff" * 20, "no pixels"),
        (b"\0" * 128 + b"DICM", "no pixel data"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 300, "DICOM|no pixel data"),
    ],
)
def test_what_is_no_image_has_a_reason(tmp_path, content, reason):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        read(path)


def test_an_archive_of_arrays_names_the_way_out(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.eye(3))
    with pytest.raises(Unreadable, match=r"\.npz.* is not supported: save each as \.npy"):
        refs(tmp_path / "a.npz")


def test_file_that_is_gone(tmp_path):
    with pytest.raises(Unreadable, match="cannot be opened: No such file"):
        read(ImageRef(path=tmp_path / "gone.png", height=3, width=3))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(write_png):
    path = write_png("a.png")
    path.chmod(0)
    with pytest.raises(Unreadable, match="Permission denied"):
        refs(path)


def test_a_format_is_one_more_reader(tmp_path, monkeypatch):
    """What a new format needs: its first bytes, `refs` and `read`."""

    class Ones:
        def refs(self, path, reading):
            return [ImageRef(path=path, height=2, width=3)]

        def read(self, ref):
            return Image(np.ones((1, ref.height, ref.width), np.float32), (0, 1))

    path = tmp_path / "a.ones"
    path.write_bytes(b"ONES")
    monkeypatch.setattr(registry, "_format_of", lambda path: "ones")
    monkeypatch.setitem(registry.READERS, "ones", Ones())
    assert read(path).pixels.shape == (1, 2, 3)


def test_the_size_limit_holds_the_largest_films():
    assert 6000 * 5000 < MAX_PIXELS < 20_000**2
