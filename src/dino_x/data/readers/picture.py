"""PNG, JPEG and BMP, through Pillow.

- Stored values: 0..255 for 8-bit files and for those of 1, 2 or 4 bits, stretched to it; 0..65535
  for 16-bit grey PNG. 16-bit PNG with colour or alpha is read as its upper 8 bits.
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


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the one image of the file. Raises Unreadable."""
    with _open(path) as picture:
        bits = 16 if picture.mode.startswith("I") else 8
        height, width, name = picture.height, picture.width, picture.format
        return [ImageRef(path=path, height=height, width=width, format=name, bits=bits)]


def read(ref: ImageRef) -> Image:
    """Decode the image. Raises Unreadable."""
    with _open(ref.path) as picture:
        try:
            values = to_array(picture)
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(_reason(error)) from None
    bits = 8 if values.dtype == np.uint8 else 16
    pixels = channels_first(values)
    return Image(pixels, choose_window(pixels, bits=bits))


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
            raise Unreadable(_reason(error)) from None
        check_size(picture.height, picture.width)
        yield picture


def _reason(error: Exception) -> str:
    """A fixed phrase for an error: Pillow's messages can quote the file's own text."""
    if isinstance(error, Pillow.DecompressionBombError):
        return "more pixels than allowed in one image"
    if "truncated" in str(error).lower():
        return "truncated image file"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    return "damaged image file"
