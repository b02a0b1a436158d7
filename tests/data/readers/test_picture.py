import struct
import zlib

import numpy as np
import pytest
from PIL import Image as Pillow

from dino_x.data.readers.registry import Unreadable, read, refs


@pytest.fixture
def save(tmp_path):
    def save(picture, name="a.png", **options):
        path = tmp_path / name
        picture.save(path, **options)
        return path

    return save


def test_grey_8_bit(save, rng):
    values = rng.integers(0, 256, (9, 7), dtype=np.uint8)
    image = read(save(Pillow.fromarray(values)))
    assert image.pixels.dtype == np.float32
    assert image.pixels.flags.c_contiguous
    np.testing.assert_array_equal(image.pixels, values[None])
    assert image.window == (0, 255)
    assert image.spacing_mm is None
    assert image.modality is None


def test_grey_16_bit_png(save, rng):
    values = rng.integers(0, 65536, (9, 7), dtype=np.uint16)
    image = read(save(Pillow.fromarray(values)))
    np.testing.assert_array_equal(image.pixels, values[None])
    assert image.window == pytest.approx(tuple(np.percentile(values, (0.5, 99.5))))


def test_dark_16_bit_png_is_not_taken_for_8_bits(save):
    values = np.arange(200, dtype=np.uint16).reshape(10, 20)
    assert read(save(Pillow.fromarray(values))).window[1] < 200


def test_colour(save, rng):
    values = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = read(save(Pillow.fromarray(values)))
    np.testing.assert_array_equal(image.pixels, values.transpose(2, 0, 1))


def test_jpeg_in_grey_and_colour(save):
    values = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8)
    for picture, channels in ((Pillow.fromarray(values), 1), (Pillow.new("RGB", (30, 40)), 3)):
        assert read(save(picture, "a.jpg")).pixels.shape == (channels, 40, 30)
    pixels = read(save(Pillow.fromarray(values), "a.jpg", quality=95)).pixels
    assert np.abs(pixels[0] - values).max() <= 2


def test_palette_becomes_rgb(save):
    picture = Pillow.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1])
    assert read(save(picture)).pixels[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]


def test_one_bit_is_black_and_white(save):
    picture = Pillow.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert read(save(picture)).pixels.tolist() == [[[0, 255], [255, 0]]]


@pytest.mark.parametrize(
    ("mode", "pixel", "seen"),
    [
        ("RGBA", (100, 50, 200, 255), [100, 50, 200]),
        ("RGBA", (100, 50, 200, 0), [0, 0, 0]),
        ("LA", (100, 255), [100]),
        ("LA", (100, 0), [0]),
    ],
)
def test_alpha_is_laid_over_black(save, mode, pixel, seen):
    assert read(save(Pillow.new(mode, (3, 2), pixel))).pixels[:, 0, 0].tolist() == seen


def test_transparent_grey_value_is_black(save):
    picture = Pillow.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert read(save(picture, transparency=7)).pixels.tolist() == [[[0, 9]]]


def test_cmyk_jpeg_becomes_rgb(save):
    pixels = read(save(Pillow.new("CMYK", (8, 8), (0, 0, 0, 255)), "a.jpg")).pixels
    assert pixels.shape == (3, 8, 8)
    assert pixels.max() < 5


def test_exif_orientation_is_ignored(save):
    picture = Pillow.new("L", (30, 20))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = save(picture, "a.jpg", exif=exif)
    (ref,) = refs(path)
    assert (ref.height, ref.width) == (20, 30)
    assert read(path).pixels.shape == (1, 20, 30)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.98])
def test_truncated_file_is_unreadable_and_not_grey(save, rng, suffix, share):
    path = save(Pillow.fromarray(rng.integers(0, 256, (80, 60, 3), dtype=np.uint8)), f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Unreadable, match="truncated|damaged"):
        read(path)


def test_flipped_bit_in_a_png_is_found(save, rng):
    path = save(Pillow.fromarray(rng.integers(0, 256, (80, 60), dtype=np.uint8)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(Unreadable):
        read(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest resets ours
def test_decompression_bomb_is_refused_by_its_header(tmp_path):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 11_000, 10_000, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    with pytest.raises(Unreadable, match="10000 x 11000 pixels are more than"):
        refs(path)
    path.write_bytes(path.read_bytes().replace(b"\x2a\xf8", b"\xff\xff"))
    with pytest.raises(Unreadable):
        refs(path)


def test_text_of_a_file_is_not_quoted(save, patient):
    path = save(Pillow.new("L", (30, 20)), "a.jpg", comment=patient["PatientName"])
    content = path.read_bytes()
    for cut in range(4, len(content), 40):
        path.write_bytes(content[:cut])
        with pytest.raises(Unreadable) as raised:
            read(path)
        assert patient["PatientName"] not in str(raised.value)


def png_of_16_bits(path, values, colour_type, interlaced=False):
    """Write [H, W, samples] as PNG of 16 bits, which Pillow does not write."""
    big = values.astype(">u2")
    rows = [big]
    if interlaced:  # Adam7, see the PNG specification, 8.1
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1)]  # fmt: skip
        rows = [big[top::down, left::across] for top, left, down, across in passes]
    data = b"".join(b"\0" + row.tobytes() for part in rows if part.size for row in part)

    def chunk(tag, content):
        check = zlib.crc32(tag + content)
        return struct.pack(">I", len(content)) + tag + content + struct.pack(">I", check)

    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, int(interlaced))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("samples", "colour_type"), [(2, 4), (3, 2), (4, 6)])
@pytest.mark.parametrize("alpha", [65535, 30000, 0])
def test_png_of_16_bits_keeps_them_all(tmp_path, samples, colour_type, alpha, interlaced):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (13, 11, samples), dtype=np.uint16)
    wanted = values.astype(float)
    if samples != 3:
        values[:, :, -1] = alpha
        wanted = np.rint(values[:, :, :-1] * (alpha / 65535))
    path = tmp_path / "a.png"
    png_of_16_bits(path, values, colour_type, interlaced)
    (ref,) = refs(path)
    assert (ref.bits, ref.channels) == (16, wanted.shape[2])
    image = read(ref)
    np.testing.assert_array_equal(image.pixels, wanted.transpose(2, 0, 1))
    if alpha:
        assert image.window[1] < 4097


@pytest.mark.parametrize(("frame", "reason"), [(0xC1, "JPEG of 12 bits"), (0xC3, "lossless JPEG")])
def test_jpeg_that_is_not_read_is_not_called_damaged(tmp_path, frame, reason):
    path = tmp_path / "a.jpg"
    head = struct.pack(">BBHBHHB", 0xFF, frame, 11, 12, 8, 8, 1) + b"\x01\x11\x00"
    path.write_bytes(b"\xff\xd8" + head + b"\xff\xd9")
    with pytest.raises(Unreadable, match=f"{reason}.*not supported: save it as PNG"):
        refs(path)


def test_of_several_pictures_the_first_is_read_and_that_is_remarked(tmp_path):
    first, second = (Pillow.new("RGB", (5, 4), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    (ref,) = refs(tmp_path / "a.png")
    assert ref.remark == "of a file with several pictures the first is read"
    assert read(ref).pixels[:, 0, 0].tolist() == [255, 0, 0]


def png(path, values, bits, colour, key):
    """Write a PNG with a value that is transparent as a whole: Pillow writes no such of 16 bits."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    if bits < 8:
        ones = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        rows = np.packbits(ones.reshape(len(values), -1), axis=1)
    else:
        rows = values.astype(f">u{bits // 8}")
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    keys = struct.pack(f">{np.size(key)}H", *np.atleast_1d(key))
    chunks = ((b"IHDR", header), (b"tRNS", keys), (b"IDAT", packed), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("colour", [False, True])
def test_a_transparent_value_is_black_whatever_its_bits(tmp_path, rng, bits, colour):
    if colour and bits < 8:
        pytest.skip("colours have 8 or 16 bits")
    values = rng.integers(0, 2**bits, (5, 16, 3) if colour else (5, 16)).astype(np.uint16)
    key = values[2, 3]
    path = png(tmp_path / "a.png", values, bits, 2 if colour else 0, key)
    (ref,) = refs(path)
    shown = values.astype(np.float64) * (255 // (2**bits - 1) if bits < 8 else 1)
    hidden = (values == key).all(axis=2) if colour else values == key
    assert 0 < hidden.sum() < hidden.size
    shown[hidden] = 0
    pixels = read(ref).pixels
    assert len(pixels) == ref.channels == (3 if colour else 1)
    np.testing.assert_array_equal(pixels, shown.transpose(2, 0, 1) if colour else shown[None])


def test_jpeg_ls_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\x01\x01\x11\0" + bytes(40))
    with pytest.raises(Unreadable, match="^JPEG-LS outside DICOM is not supported"):
        refs(path)
