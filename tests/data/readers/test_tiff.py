import struct

import numpy as np
import pytest
import tifffile
from PIL import Image as Pillow

from dino_x.data.image import Reading
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


def test_alpha_is_laid_over_black_and_further_channels_are_kept(path, rng):
    values = rng.integers(0, 256, (9, 7, 5), dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
    share = values[:, :, 3:4] / 255
    wanted = np.concatenate([np.rint(values[:, :, :3] * share), values[:, :, 4:]], axis=2)
    np.testing.assert_array_equal(read(path).pixels, wanted.transpose(2, 0, 1))


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


def lzw(data: bytes) -> bytes:
    """Encode bytes as LZW without any compression: each byte a code, the table often cleared."""
    codes = []
    for start in range(0, len(data), 200):
        codes += [256, *data[start : start + 200]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def with_predictor(path, predictor, values, **how):
    """Write values that a predictor has changed already; tifffile writes none it did not apply."""
    tifffile.imwrite(path, values, extratags=[(65000, 3, 1, predictor, True)], **how)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<HHI", 65000, 3, 1), struct.pack("<HHI", 317, 3, 1)))


def as_lzw(path):
    """Change a file whose strips are not compressed into one in LZW."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
    raw = path.read_bytes()
    strips = [lzw(raw[at : at + n]) for at, n in zip(offsets, counts, strict=True)]
    starts = [len(raw) + sum(map(len, strips[:n])) for n in range(len(strips))]
    path.write_bytes(raw + b"".join(strips))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        tags["StripOffsets"].overwrite(starts)
        tags["StripByteCounts"].overwrite([len(strip) for strip in strips])
        tags["Compression"].overwrite(5)


DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_lzw_gives_the_same_values_as_no_compression(path, rng, dtype, byteorder, shape):
    values = rng.uniform(-100 if np.dtype(dtype).kind != "u" else 0, 100, shape).astype(dtype)
    colours = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(path, values, photometric=colours, byteorder=byteorder, rowsperstrip=4)
    plain = read(path).pixels
    as_lzw(path)
    np.testing.assert_array_equal(read(path).pixels, plain)
    wanted = np.atleast_3d(values).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(plain, wanted)


def test_lzw_with_planes_apart(path, rng):
    values = rng.integers(0, 65536, (3, 9, 7), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate")
    as_lzw(path)
    np.testing.assert_array_equal(read(path).pixels, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_horizontal_predictor_of_lzw(path, rng, dtype, shape):
    values = rng.integers(0, 100, shape).astype(dtype)
    differences = np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1])).astype(dtype)
    colours = "rgb" if len(shape) == 3 else "minisblack"
    with_predictor(path, 2, differences, photometric=colours)
    as_lzw(path)
    np.testing.assert_array_equal(read(path).pixels, np.atleast_3d(values).transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_predictor_of_floating_point(path, rng, dtype, shape):
    """Bytes of a row are sorted by their significance, and then differences are taken."""
    values = rng.normal(size=shape).astype(dtype)
    samples = shape[2] if len(shape) == 3 else 1
    big = values.astype(np.dtype(dtype).newbyteorder(">")).reshape(9, -1)
    sorted_bytes = big.view(np.uint8).reshape(9, big.shape[1], -1).transpose(0, 2, 1).reshape(9, -1)
    rows = sorted_bytes.reshape(9, -1, samples)
    rows = np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1])).astype(np.uint8)
    stored = np.frombuffer(rows.tobytes(), dtype).reshape(shape)
    colours = "rgb" if samples == 3 else "minisblack"
    with_predictor(path, 3, stored, photometric=colours)
    wanted = np.atleast_3d(values).transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(read(path).pixels, wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib", "tiff_lzw", "jpeg"])
def test_orientation_is_ignored_whatever_the_compression(path, orientation, compression):
    smooth = np.add.outer(3 * np.arange(16), 5 * np.arange(24)).astype(np.uint8)
    if compression in (None, "zlib"):
        tag = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(path, smooth, compression=compression, extratags=tag)
    else:
        picture = Pillow.fromarray(smooth)
        picture.save(path, compression=compression, tiffinfo={274: orientation})
    pixels = read(path).pixels
    assert pixels.shape == (1, 16, 24)
    assert np.abs(pixels[0] - smooth).max() <= (3 if compression == "jpeg" else 0)
    assert (refs(path)[0].height, refs(path)[0].width) == (16, 24)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ycbcr_becomes_rgb(path, rng, compression):
    colours = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    ycbcr = np.asarray(Pillow.fromarray(colours).convert("YCbCr"))
    tifffile.imwrite(path, ycbcr, photometric="ycbcr", subsampling=(1, 1), compression=compression)
    assert np.abs(read(path).pixels - colours.transpose(2, 0, 1)).max() <= 3


@pytest.mark.parametrize("kind", ["RGBA", "LA"])
def test_alpha_is_the_same_whatever_the_compression(tmp_path, rng, kind):
    values = rng.integers(0, 256, (9, 7, len(kind)), dtype=np.uint8)
    found = []
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        path = tmp_path / f"{compression}.tif"
        Pillow.fromarray(values, kind).save(path, compression=compression)
        found.append(read(path).pixels)
    over_black = np.rint(values[:, :, :-1] * (values[:, :, -1:] / 255)).transpose(2, 0, 1)
    for pixels in found:
        np.testing.assert_array_equal(pixels, over_black)


def test_masks_are_no_images(path, rng):
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(rng.integers(0, 255, (9, 7), dtype=np.uint8))
        tiff.write(rng.random((9, 7)) > 0.5, subfiletype=4, photometric="mask")
    assert [ref.frame for ref in refs(path)] == [0]


@pytest.mark.parametrize("how", [{"imagej": True, "metadata": {"axes": "ZYX"}}, {}])
def test_a_stack_with_one_header_has_all_of_its_images(path, rng, how):
    """As ImageJ writes stacks of more than 4 GB."""
    values = rng.integers(0, 65536, (5, 9, 7), dtype=np.uint16)
    tifffile.imwrite(path, values, truncate=True, **how)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 1
    found = refs(path)
    assert len(found) == 5
    assert len({ref.series for ref in found}) == 1
    for ref, wanted in zip(found, values, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], wanted)


def test_a_stack_with_one_header_that_is_cut_off_is_refused(path, rng):
    values = rng.integers(0, 65536, (5, 90, 70), dtype=np.uint16)
    tifffile.imwrite(path, values, truncate=True)
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        refs(path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiles_of_a_volume_are_slices(path, rng, compression):
    values = rng.integers(0, 65536, (20, 40, 33), dtype=np.uint16)
    tifffile.imwrite(
        path, values, tile=(16, 16, 16), volumetric=True, compression=compression, metadata=None
    )
    found = refs(path)
    assert len(found) == 20
    for ref, wanted in zip(found, values, strict=True):
        np.testing.assert_array_equal(read(ref).pixels[0], wanted)


@pytest.mark.parametrize("channels", [2, 3, 4, 5])
@pytest.mark.parametrize("how", ["contig", "separate", "pages"])
def test_all_channels_are_kept(tmp_path, rng, channels, how):
    values = rng.integers(0, 65536, (channels, 9, 7), dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if how == "pages" else "a.tif")
    if how == "pages":
        tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "CYX"})
    else:
        stored = values if how == "separate" else values.transpose(1, 2, 0)
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig=how, metadata=None)
    (ref,) = refs(path)
    assert ref.channels == channels
    np.testing.assert_array_equal(read(ref).pixels, values)


def test_channels_of_slices_and_times(tmp_path, rng):
    path = tmp_path / "a.ome.tif"
    values = rng.integers(0, 65536, (2, 3, 4, 9, 7), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": "TCZYX"})
    found = refs(path)
    assert len(found) == 8
    wanted = values.transpose(0, 2, 1, 3, 4).reshape(8, 3, 9, 7)
    for ref, image in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(read(ref).pixels, image)


def test_pages_are_channels_if_that_is_said(path, rng):
    values = rng.integers(0, 65536, (4, 9, 7), dtype=np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", metadata=None)
    assert len(refs(path)) == 4
    (ref,) = refs(path, Reading(axes="CHW"))
    np.testing.assert_array_equal(read(ref).pixels, values)


def test_what_is_not_supported_is_not_called_damaged(path):
    tifffile.imwrite(path, np.zeros((5, 5), dtype=np.uint16), metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["Compression"].overwrite(50002)  # JPEG XL
    with pytest.raises(Unreadable, match="JPEGXL compression is not supported: use deflate"):
        read(path)


def test_the_photograph_of_a_label_is_named(path, rng):
    picture = rng.integers(0, 255, (9, 7, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for text in ("Scanner", "Scanner\nlabel 9x7", "Scanner\nmacro 9x7"):
            tiff.write(picture, photometric="rgb", description=text, metadata=None)
    assert [ref.kind for ref in refs(path)] == [None, "slide_label", "slide_label"]
