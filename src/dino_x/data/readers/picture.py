"""PNG, JPEG and BMP, through Pillow.

- Stored values: 0..255 for 8-bit files and for those of 1, 2 or 4 bits, stretched to it; 0..65535
  for 16-bit PNG. Pillow keeps only the upper byte of 16-bit colour and alpha: such files are
  decoded twice, for the upper and for the lower bytes.
- Palettes become RGB. Alpha is composited over black.
- EXIF orientation is ignored: rows and columns are those in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from dino_x.data.image import (
    DEFAULT,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_size,
)
from dino_x.data.windowing import choose_window

_FORMATS = ("PNG", "JPEG", "BMP")
_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")

FIRST_PICTURE = "of a file with several pictures the first is read"


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the one image of the file. Raises Unreadable."""
    with _open(path) as picture:
        samples = _samples_of_16_bits(path)
        deep = picture.mode.startswith("I") or samples is not None
        grey = samples == 2 or (samples is None and picture.mode in _GREY)
        name = "JPEG" if picture.format == "MPO" else picture.format
        frames = getattr(picture, "n_frames", 1)
        return [
            ImageRef(
                path=path,
                height=picture.height,
                width=picture.width,
                channels=1 if grey else 3,
                format=name,
                bits=16 if deep else 8,
                remark=FIRST_PICTURE if frames > 1 else None,
            )
        ]


def read(ref: ImageRef) -> Image:
    """Decode the image. Raises Unreadable."""
    samples = _samples_of_16_bits(ref.path)
    with _open(ref.path) as picture:
        try:
            key = _transparent_value(ref.path, picture)
            values = to_array(picture) if samples is None else _deep(ref.path, samples)
            if key is not None:  # alpha is laid over black
                values = np.where((values == key).all(axis=2, keepdims=True), 0, values)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(_reason(error)) from None
    bits = 8 if values.dtype == np.uint8 else 16
    pixels = channels_first(values)
    return Image(pixels, choose_window(pixels, bits=bits))


def _samples_of_16_bits(path: Path) -> int | None:
    """The samples a pixel of a PNG of 16 bits with colour or alpha; None for all other files.

    Source: PNG specification, third edition, 11.2.1 (IHDR).
    """
    with path.open("rb") as file:
        head = file.read(26)
    if not head.startswith(b"\x89PNG") or head[12:16] != b"IHDR" or head[24] != 16:
        return None
    return {2: 3, 4: 2, 6: 4}.get(head[25])


def _transparent_value(path: Path, picture: Pillow.Image) -> tuple[int, ...] | None:
    """The value of a PNG that is transparent as a whole, if it names one: grey, or a colour.

    It is taken from the picture: Pillow compares it with values that are stretched to 8 bits, and
    not at all with those of 16. Palettes keep theirs.

    Source: PNG specification, third edition, 11.3.1.1 (tRNS).
    """
    named = picture.info.get("transparency")
    grey = picture.mode in ("1", "L") or picture.mode.startswith("I")
    if picture.format != "PNG" or named is None or not (grey or picture.mode == "RGB"):
        return None
    with path.open("rb") as file:
        bits = file.read(25)[24]
    del picture.info["transparency"]
    most = (1 << bits) - 1
    parts = named if isinstance(named, tuple) else (named,)
    return tuple((part & most) * (255 // most if bits < 8 else 1) for part in parts)


def _deep(path: Path, samples: int) -> np.ndarray:
    """Decode a PNG of 16 bits to [H, W, C] with alpha laid over black, C = 1 or 3.

    A grey value and its alpha are four bytes, as red, green, blue and alpha of 8 bits are.
    """
    if samples == 2:
        grey = _bytes_of(path, "RGBA", "RGBA").astype(np.uint16)
        values = grey[:, :, 0::2] << 8 | grey[:, :, 1::2]
    else:
        mode = "RGB" if samples == 3 else "RGBA"
        upper, lower = (_bytes_of(path, mode, f"{mode};16{end}") for end in "BL")
        values = upper.astype(np.uint16) << 8 | lower
    if samples == 3:
        return values
    share = values[:, :, -1:] / 65535
    return np.rint(values[:, :, :-1] * share).astype(np.uint16)


def _bytes_of(path: Path, mode: str, raw_mode: str) -> np.ndarray:
    """Bytes of a PNG's samples: Pillow's decoder puts them together as the raw mode says."""
    with _open(path) as picture:
        picture._mode = mode  # type: ignore[attr-defined]
        picture.info.pop("transparency", None)
        picture.tile = [  # type: ignore[attr-defined]
            tile._replace(args=raw_mode) if hasattr(tile, "_replace") else (*tile[:3], raw_mode)
            for tile in picture.tile  # type: ignore[attr-defined]
        ]
        return np.asarray(picture)


def to_array(picture: Pillow.Image) -> np.ndarray:
    """Decode a picture to [H, W, C], C = 1 or 3: uint8, or 16 and 32-bit values as they are."""
    transparent = "transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB")
    if transparent or picture.mode in ("PA", "LA", "La", "RGBA", "RGBa"):
        grey = picture.mode in ("1", "L", "LA", "La")
        black = Pillow.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Pillow.alpha_composite(black, picture.convert("RGBA"))
        picture = picture.getchannel(0) if grey else picture.convert("RGB")
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("RGB")
    elif not (picture.mode in ("L", "RGB", "F", "I") or picture.mode.startswith("I;16")):
        raise Unreadable(f"pixels of Pillow mode {picture.mode} are not supported")
    values = np.asarray(picture)
    return values[:, :, None] if values.ndim == 2 else values


@contextmanager
def _open(path: Path) -> Iterator[Pillow.Image]:
    with ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("rb"))
            picture = opened.enter_context(Pillow.open(file, formats=_FORMATS))
        except Exception as error:
            unusual = _unusual_jpeg(path)
            raise Unreadable(unusual or _reason(error)) from None
        check_size(picture.height, picture.width)
        yield picture


def _unusual_jpeg(path: Path) -> str | None:
    """Why a whole JPEG is not read: more than 8 bits, or lossless; None for other files.

    Source: ISO/IEC 10918-1 B.2.2, 14495-1 C.2.2.
    """
    try:
        with path.open("rb") as file:
            data = file.read(1 << 16)
    except OSError:
        return None
    at = 2
    while data.startswith(b"\xff\xd8") and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xF7:
            return "JPEG-LS outside DICOM is not supported: save it as PNG"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if marker in (0xC3, 0xC7, 0xCB, 0xCF):
                return "lossless JPEG outside DICOM is not supported: save it as PNG"
            bits = data[at + 4]
            return None if bits == 8 else f"JPEG of {bits} bits is not supported: save it as PNG"
        at += 2 + max(2, length)
    return None


def _reason(error: Exception) -> str:
    """A fixed phrase for an error: Pillow's messages can quote the file's own text."""
    if isinstance(error, Pillow.DecompressionBombError):
        return "more pixels than allowed in one image"
    if "truncated" in str(error).lower():
        return "truncated image file"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return "damaged image file"
