"""The stored values of one TIFF page, whatever its compression, predictor and type of number.

Strips and tiles are unpacked here, never further than the page says. LZW is unpacked by libtiff
within Pillow, which gets the bytes as a grey picture, so that it need not know their type. JPEG,
fax codes and CMYK are decoded by Pillow as a whole.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image as Pillow
from tifffile import COMPRESSION, PREDICTOR

from dino_x.data.image import Unreadable

UNPACKED_HERE = {
    COMPRESSION.NONE,
    COMPRESSION.ADOBE_DEFLATE,
    COMPRESSION.DEFLATE,
    COMPRESSION.PACKBITS,
    COMPRESSION.LZMA,
    COMPRESSION.LZW,
}
# A strip may unpack to this many bytes more than the page says.
_HARMLESS = 16 * 2**20
_PREDICTORS = {PREDICTOR.NONE, PREDICTOR.HORIZONTAL, PREDICTOR.FLOATINGPOINT}


def stored_values(page: Any, number: int = 0) -> np.ndarray:
    """The values of a slice of a page, [H, W, samples], in the type and with the bits of the file.

    Args:
        page: a page whose compression is one of `UNPACKED_HERE`.
        number: which slice, if the page is a volume.

    Raises: Unreadable; other errors where the file is damaged.
    """
    check_type(page)
    samples = int(page.samplesperpixel)
    planes = samples if int(page.planarconfig) == 2 and samples > 1 else 1
    inside = samples // planes
    depth, height, width = int(page.imagedepth), int(page.imagelength), int(page.imagewidth)
    deep, tall, wide = _segment_size(page)
    across, down, behind = -(-width // wide), -(-height // tall), -(-depth // deep)
    out = np.zeros((planes, height, width, inside), dtype=_dtype(page))
    if len(page.dataoffsets) < planes * behind * down * across:
        raise Unreadable("damaged TIFF: strips or tiles are missing")
    for which in range(planes * behind * down * across):
        rest, column = divmod(which, across)
        rest, row = divmod(rest, down)
        plane, back = divmod(rest, behind)
        if back != number // deep:
            continue
        rows = tall if page.is_tiled else min(tall, height - row * tall)
        segment = _segment(page, which, (deep, rows, wide, inside))
        if segment is None:
            continue
        place = out[
            plane,
            row * tall : (row + 1) * tall,
            column * wide : (column + 1) * wide,
        ]
        place[...] = segment[number % deep, : place.shape[0], : place.shape[1]]
    return np.moveaxis(out, 0, 2).reshape(height, width, samples)


def values_at(page: Any, number: int) -> np.ndarray:
    """The values of a plane that follows a page without a header of its own, [H, W, samples].

    Args:
        page: the only page of the file, not compressed.
        number: how many planes further on; 0 is the page itself.
    """
    check_type(page)
    samples = int(page.samplesperpixel)
    shape = (int(page.imagelength), int(page.imagewidth), samples)
    size = int(np.prod(shape)) * _dtype(page).itemsize
    file = page.parent.filehandle
    file.seek(page.dataoffsets[0] + number * size)
    data = file.read(size)
    if len(data) < size:
        raise Unreadable("truncated TIFF: the last images of its stack are missing")
    values = np.frombuffer(data, _stored_dtype(page))
    if int(page.planarconfig) == 2 and samples > 1:
        return np.moveaxis(values.reshape(samples, *shape[:2]), 0, 2)
    return values.reshape(shape)


def check_type(page: Any) -> None:
    """Raise Unreadable for pages of a type of number that is not read."""
    bits = page.bitspersample
    if bits not in (1, 8, 16, 32, 64):
        raise Unreadable(f"TIFF of {bits} bits is not supported: save it with 8 or 16 bits")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise Unreadable("TIFF of complex values is not supported: save their magnitude")
    if page.predictor not in _PREDICTORS:
        raise Unreadable("TIFF with this predictor is not supported: save it without one")


def _dtype(page: Any) -> np.dtype:
    return np.dtype(bool) if page.bitspersample == 1 else page.dtype.newbyteorder("=")


def _stored_dtype(page: Any) -> np.dtype:
    return page.dtype.newbyteorder(page.parent.byteorder)


def _segment_size(page: Any) -> tuple[int, int, int]:
    """Depth, rows and columns of a tile or of a strip."""
    if page.is_tiled:
        return max(1, int(page.tiledepth)), int(page.tilelength), int(page.tilewidth)
    rows = int(page.rowsperstrip or page.imagelength)
    return 1, max(1, min(rows, int(page.imagelength))), int(page.imagewidth)


def _segment(page: Any, number: int, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    """One strip or tile, [depth, rows, columns, samples]; None for one that is left out."""
    offset, count = page.dataoffsets[number], page.databytecounts[number]
    if count == 0:
        return None
    deep, rows, columns, samples = shape
    bits = int(page.bitspersample)
    row_bytes = -(-columns * samples * bits // 8)
    file = page.parent.filehandle
    file.seek(offset)
    data = _unpacked(page, file.read(count), deep * rows, row_bytes)
    if len(data) < deep * rows * row_bytes:
        raise Unreadable("truncated or damaged TIFF: a strip or tile is too short")
    lines = np.frombuffer(data, np.uint8, deep * rows * row_bytes).reshape(deep * rows, row_bytes)
    if bits == 1:
        bit_of = np.unpackbits(lines, axis=1).reshape(len(lines), row_bytes, 8)
        if int(page.fillorder) == 2:
            bit_of = bit_of[:, :, ::-1]
        values = bit_of.reshape(len(lines), -1)[:, : columns * samples]
        return values.astype(bool).reshape(shape)
    return _predicted(page, lines, samples).reshape(shape)


def _predicted(page: Any, lines: np.ndarray, samples: int) -> np.ndarray:
    """The values of rows of bytes, with what the predictor took off added again.

    Source: TIFF 6.0, section 14; Adobe TIFF technical note 3 for floating point.
    """
    if page.predictor == PREDICTOR.FLOATINGPOINT:
        size = page.dtype.itemsize
        differences = lines.reshape(len(lines), -1, samples)
        summed = np.cumsum(differences, axis=1, dtype=np.uint8).reshape(len(lines), size, -1)
        most_significant_first = np.ascontiguousarray(summed.transpose(0, 2, 1))
        values = most_significant_first.view(page.dtype.newbyteorder(">"))[..., 0]
        return values.astype(_dtype(page))
    values = lines.view(_stored_dtype(page)).astype(_dtype(page))
    if page.predictor == PREDICTOR.HORIZONTAL:
        whole = values.view(f"u{values.dtype.itemsize}").reshape(len(lines), -1, samples)
        summed = np.cumsum(whole, axis=1, dtype=whole.dtype)
        return summed.view(values.dtype)
    return values


def _unpacked(page: Any, data: bytes, rows: int, row_bytes: int) -> bytes:
    """The bytes of a strip or tile, no more than it can have."""
    compression, size = page.compression, rows * row_bytes
    if compression == COMPRESSION.NONE:
        return data
    if compression == COMPRESSION.PACKBITS:
        return _packbits(data, size)
    if compression == COMPRESSION.LZW:
        return _lzw(data, rows, row_bytes)
    unpacker: Any = (
        lzma.LZMADecompressor() if compression == COMPRESSION.LZMA else zlib.decompressobj()
    )
    unpacked: bytes = unpacker.decompress(data, max_length=size)
    left = size + _HARMLESS
    while left > 0:  # what follows is hardly ever more than a few rows
        rest = getattr(unpacker, "unconsumed_tail", b"")
        if unpacker.eof or not (more := unpacker.decompress(rest, max_length=1 << 20)):
            return unpacked
        left -= len(more)
    raise Unreadable("unpacks to more than its header says")


def _packbits(data: bytes, size: int) -> bytes:
    """Unpack runs of equal bytes. Source: TIFF 6.0, section 9."""
    out, at = bytearray(), 0
    while at < len(data) and len(out) < size:
        head = data[at]
        if head < 128:
            out += data[at + 1 : at + 2 + head]
            at += 2 + head
        else:
            if head > 128:
                out += data[at + 1 : at + 2] * (257 - head)
            at += 2 if head > 128 else 1
    return bytes(out)


def _lzw(data: bytes, rows: int, row_bytes: int) -> bytes:
    """Unpack LZW by libtiff: the bytes are wrapped as a grey picture of 8 bits."""
    tags = [
        (256, 4, row_bytes), (257, 4, rows), (258, 3, 8), (259, 3, 5), (262, 3, 1), (273, 4, 0),
        (277, 3, 1), (278, 4, rows), (279, 4, len(data)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, value in tags:
        head += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    with Pillow.open(io.BytesIO(head + bytes(4) + data), formats=("TIFF",)) as picture:
        return picture.tobytes()
