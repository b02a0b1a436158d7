import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from dino_x.data.readers.registry import Unreadable, read, refs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.tif"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16, np.float32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}]
)
def test_values_are_as_stored(path, rng, dtype, shape, options):
    if dtype == np.float32 and "predictor" in options:
        options = {"compression": "zlib"}
    low, high = {"u": (0, 250), "i": (-120, 120), "f": (-1e6, 1e6)}[np.dtype(dtype).kind]
    values = rng.uniform(low, high, shape).astype(dtype)
    photometric = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, values, photometric=photometric, **options)
    image = read(path)
    wanted = values.transpose(2, 0, 1) if len(shape) == 3 else values[None]
    np.testing.assert_array_equal(image.pixels, wanted)
    assert image.pixels.dtype == np.float32
    if dtype == np.uint8:
        assert image.window == (0, 255)
    else:
        assert image.window == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))))


def test_planes_apart(path, rng):
    values = rng.integers(0, 65536, (3, 9, 7), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read(path).pixels, values)


def test_pages_are_frames(path, rng):
    pages = [rng.integers(0, 65536, size, dtype=np.uint16) for size in ((9, 7), (4, 5))]
    with tifffile.TiffWriter(path) as tiff:
        for page in pages:
            tiff.write(page, contiguous=False)
    found = refs(path)
    assert [(ref.frame, ref.height, ref.width) for ref in found] == [(0, 9, 7), (1, 4, 5)]
    for ref, page in zip(found, pages, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], page)


def test_thumbnail_is_not_an_image(path, rng):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rng.integers(0, 255, (9, 7), dtype=np.uint8))
        tiff.write(rng.integers(0, 255, (3, 2), dtype=np.uint8), subfiletype=1)
    assert [ref.height for ref in refs(path)] == [9]


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_compressions(path, compression, mode):
    smooth = Pillow.fromarray(np.add.outer(np.arange(32), np.arange(24)).astype(np.uint8))
    smooth.convert(mode).save(path, compression=compression)
    pixels = read(path).pixels
    assert pixels.shape == (len(mode), 32, 24)
    assert np.abs(pixels - np.asarray(smooth)).max() <= (3 if compression == "jpeg" else 0)


def test_lzw_of_16_bits_and_of_a_later_page(path, rng):
    pages = [Pillow.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)) for _ in range(2)]
    pages[0].save(path, compression="tiff_lzw", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read(refs(path)[1]).pixels[0], np.asarray(pages[1]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero_is_turned_around(path, dtype):
    values = np.array([[0, 10], [100, 200]], dtype=dtype)
    tifffile.imwrite(path, values, photometric="miniswhite")
    np.testing.assert_array_equal(read(path).pixels[0], np.iinfo(dtype).max - values)


def test_palette_becomes_8_bit_rgb(path):
    colours = np.zeros((3, 256), dtype=np.uint16)
    colours[:, 1] = 0xFFFF, 0x8000, 0x0100
    values = np.array([[0, 1]], dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="palette", colormap=colours)
    image = read(path)
    assert image.pixels[:, 0].T.tolist() == [[0, 0, 0], [255, 128, 1]]
    assert image.window == (0, 255)


def test_alpha_and_further_channels_are_dropped(path, rng):
    values = rng.integers(0, 256, (9, 7, 5), dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
    np.testing.assert_array_equal(read(path).pixels, values[:, :, :3].transpose(2, 0, 1))


def test_one_bit_is_black_and_white(path):
    tifffile.imwrite(path, np.array([[True, False]]), photometric="minisblack")
    assert read(path).pixels.tolist() == [[[255, 0]]]


@pytest.mark.parametrize(("unit", "spacing"), [("CENTIMETER", (0.5, 0.25)), ("INCH", None)])
def test_spacing_from_centimetres_only(path, unit, spacing):
    tifffile.imwrite(path, np.eye(4, dtype=np.uint8), resolution=(40, 20), resolutionunit=unit)
    assert read(path).spacing_mm == spacing


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_truncated_file(path, rng, compression, share):
    values = rng.integers(0, 65536, (90, 70), dtype=np.uint16)
    tifffile.imwrite(path, values, compression=compression, metadata=None)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


def test_bomb_is_refused_by_its_header(path):
    tifffile.imwrite(path, np.zeros((5, 5), dtype=np.uint8), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(65_000)
        tiff.pages[0].tags["ImageLength"].overwrite(65_000)
    with pytest.raises(Unreadable, match="65000 x 65000 pixels are more than"):
        refs(path)


def test_16_bit_colour_in_lzw_is_refused_and_not_cut_to_8_bits(path):
    tifffile.imwrite(path, np.zeros((5, 5, 3), dtype=np.uint16), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(5)
    with pytest.raises(Unreadable, match="16-bit colour TIFF with LZW"):
        read(path)
