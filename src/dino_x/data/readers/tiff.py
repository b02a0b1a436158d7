"""TIFF through tifffile, one image a page; LZW and JPEG inside TIFF through Pillow.

Stored values: 0..255 for 8-bit pages, 0..65535 for 16-bit ones, float pages as they are. White is
made the larger value where the file says that zero is white. Alpha and other extra channels are
dropped. Palettes become RGB.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import replace
from lzma import LZMADecompressor
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile
from PIL import Image as Pillow
from tifffile import COMPRESSION, PHOTOMETRIC, RESUNIT

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_count,
    check_size,
)
from dino_x.data.readers.picture import to_array
from dino_x.data.storage.member import whereabouts
from dino_x.data.windowing import choose_window

# Compressions that tifffile decodes without the imagecodecs package.
_OWN = {
    COMPRESSION.NONE,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.LZMA,
}

# A byte can unpack to this many bytes; and this many bytes beyond the page's own do no harm.
_DEFLATE_RATIO, _LZMA_RATIO = 1032, 8000
_HARMLESS = 64 * 2**20


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the pages of a file, without thumbnails. Raises Unreadable."""
    found = []
    try:
        with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            for number, page in enumerate(cast(Iterable[tifffile.TiffPage], tiff.pages)):
                check_count(number + 1)
                if not page.is_reduced:
                    found.append(_ref(path, number, page))
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("damaged TIFF header") from None
    check_count(len(found))
    if len(found) > 1:  # pages of one file are likely slices of one volume, or frames of one film
        series = key("series", whereabouts(path))
        found = [replace(ref, series=series) for ref in found]
    return found


def _ref(path: Path, number: int, page: Any) -> ImageRef:
    height, width = int(page.imagelength), int(page.imagewidth)
    check_size(height, width)
    return ImageRef(
        path=path,
        frame=number,
        height=height,
        width=width,
        spacing_mm=_spacing(page),
        format="TIFF",
        bits=page.bitspersample if isinstance(page.bitspersample, int) else None,
    )


def read(ref: ImageRef) -> Image:
    """Decode one page. Raises Unreadable."""
    try:
        with ref.path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            page: Any = tiff.pages[ref.frame]
            check_size(page.imagelength, page.imagewidth)
            spacing = _spacing(page)
            values = _decode(page, ref)
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("truncated or damaged TIFF") from None
    pixels = channels_first(values)
    bits = 8 if values.dtype == np.uint8 else None
    return Image(pixels, choose_window(pixels, bits=bits), spacing)


def _refuse_bomb(page: Any) -> None:
    """Raise Unreadable for a page whose strips or tiles unpack to more than the page holds.

    The library's decoders unpack whatever there is. A page that is too small to do harm is not
    examined; others are unpacked once more, up to the limit.
    """
    if page.compression not in (COMPRESSION.LZMA, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE):
        return
    lzma = page.compression == COMPRESSION.LZMA
    ratio = _LZMA_RATIO if lzma else _DEFLATE_RATIO
    limit = 2 * page.nbytes + _HARMLESS
    if sum(page.databytecounts) * ratio <= limit:
        return
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        limit -= _unpacked_bytes(file.read(count), lzma, limit)
        if limit <= 0:
            raise Unreadable("unpacks to more than its header says")


def _unpacked_bytes(data: bytes, lzma: bool, limit: int) -> int:
    """How many bytes some data unpack to, counted up to a limit."""
    count = 0
    while data and count < limit:  # LZMA may have streams one behind another
        unpacker: Any = LZMADecompressor() if lzma else zlib.decompressobj()
        count += len(unpacker.decompress(data, max_length=limit - count))
        data = unpacker.unused_data if lzma and unpacker.eof else b""
    return count


def _decode(page: Any, ref: ImageRef) -> np.ndarray:
    """Decode one page to [H, W, C], C = 1 or 3, with larger values brighter."""
    if page.compression not in _OWN or page.photometric == PHOTOMETRIC.SEPARATED:
        return _decode_by_pillow(page, ref)
    if page.bitspersample not in (1, 8, 16, 32, 64):
        raise Unreadable(f"TIFF of {page.bitspersample} bits is not supported")
    _refuse_bomb(page)
    values = page.asarray()
    if page.planarconfig == 2 and values.ndim == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or values.dtype.kind not in "buif":
        raise Unreadable("TIFF pages of more than two dimensions or complex values")
    if page.photometric == PHOTOMETRIC.PALETTE:
        colours = page.colormap[:, values[:, :, 0]]  # 16-bit by the TIFF specification
        return (colours >> 8).astype(np.uint8).transpose(1, 2, 0)
    values = values[:, :, :3] if values.shape[2] >= 3 else values[:, :, :1]
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        values = _inverted(values)
    return values


def _inverted(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    return values.max() + values.min() - values


def _decode_by_pillow(page: Any, ref: ImageRef) -> np.ndarray:
    """Decode LZW, JPEG, fax codes and CMYK by Pillow, which would cut 16-bit colour to 8 bits."""
    if page.bitspersample > 8 and page.samplesperpixel > 1:
        name = COMPRESSION(page.compression).name
        raise Unreadable(f"16-bit colour TIFF with {name} compression is not supported")
    with ref.path.open("rb") as file, Pillow.open(file, formats=("TIFF",)) as picture:
        picture.seek(ref.frame)
        values = to_array(picture)
    # Pillow has turned white-is-zero around for 8 bits, and not for 16.
    inverted = page.photometric == PHOTOMETRIC.MINISWHITE and values.dtype != np.uint8
    return _inverted(values) if inverted else values


def _spacing(page: Any) -> tuple[float, float] | None:
    """The (row, column) spacing in mm from the resolution tags, if they are in centimetres.

    Inches are the unit of printers and of defaults (72 dpi), and say nothing about anatomy.
    """
    if page.resolutionunit != RESUNIT.CENTIMETER:
        return None
    across, down = page.resolution
    return (10.0 / down, 10.0 / across) if across > 0 and down > 0 else None
