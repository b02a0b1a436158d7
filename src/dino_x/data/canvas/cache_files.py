"""The files of the cache on disk, each written by one process. A cache file is a pair:

    canvases-ID.pixels     records of uint16 [C, S, S] one after another
    canvases-ID.entries    a header and one entry a record: key, checksum, and facts of the canvas

A record is written before its entry, and both carry checksums. While a cache file is written, its
pixels are a sparse file of full length.
"""

from __future__ import annotations

import io
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_x.data.canvas.canvas import Canvas
from dino_x.machine.system import read_at

CACHE_FILE_BYTES = 256 * 2**20  # small enough to be removed one by one, large enough to be few

_MAGIC = b"DINOXC01"
_HEADER = struct.Struct("<8sIIII")  # magic, channels, side, 0, checksum up to here
# key, checksum of the pixels, Hounsfield units, aspect, height and width in mm (NaN: unknown),
# checksum of the entry up to here
_ENTRY = struct.Struct("<16sIIdddI")
ENTRY_BYTES = _ENTRY.size


@dataclass(frozen=True)
class CacheEntry:
    """One record of a cache file.

    Attributes:
        key: of the image, see `store.keys_of`.
        record: its number in the file.
        checksum: of the pixels.
        canvas: the canvas without its pixels.
    """

    key: bytes
    record: int
    checksum: int
    canvas: Canvas


class Records:
    """The pixels of a cache file, read one record at a time.

    They are read and not mapped: a file that is cut off while it is mapped ends the process.

    Args:
        path: of the pixels.
        shape: [C, S, S] of a record.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self._file = io.FileIO(path, "r")  # stays open, also if the file is removed
        self._shape = shape
        self._bytes = 2 * int(np.prod(shape))

    def read(self, record: int) -> np.ndarray | None:
        """A record, uint16 [C, S, S]; None if it cannot be read as a whole any more."""
        try:
            data = read_at(self._file.fileno(), self._bytes, record * self._bytes)
        except OSError:
            return None
        if len(data) < self._bytes:
            return None
        return np.frombuffer(data, dtype="<u2").reshape(self._shape)


def checksum_of(pixels: np.ndarray) -> int:
    """The CRC-32 of a canvas's pixels."""
    return zlib.crc32(np.ascontiguousarray(pixels, dtype="<u2").data.cast("B"))


def size_on_disk(file: Path) -> int:
    """The bytes that a file takes on the disk; a sparse file takes less than its length."""
    status = file.stat()
    return min(status.st_size, status.st_blocks * 512)


def read_cache_file(
    path: Path, shape: tuple[int, int, int]
) -> tuple[Records | None, list[CacheEntry]]:
    """Open a cache file for reading.

    Args:
        path: of its entries.
        shape: [C, S, S] of the canvases that are looked for.

    Returns: its records, and the entries that are whole. There are none in a file that is no cache
        file or holds canvases of another shape.

    Raises: OSError, also if the pixels are not there.
    """
    nothing = None, list[CacheEntry]()
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        return nothing
    magic, channels, side, _, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or checksum != zlib.crc32(data[: _HEADER.size - 4]):
        return nothing
    pixels = path.with_suffix(".pixels")
    length = pixels.stat().st_size // (2 * int(np.prod(shape)))
    if (channels, side, side) != shape or length == 0:
        return nothing
    entries = []
    for record in range(min(length, (len(data) - _HEADER.size) // _ENTRY.size)):
        start = _HEADER.size + record * _ENTRY.size
        key, crc, hounsfield, aspect, height, width, checksum = _ENTRY.unpack_from(data, start)
        if checksum != zlib.crc32(data[start : start + _ENTRY.size - 4]):
            continue
        size = None if np.isnan(height) else (height, width)
        canvas = Canvas(np.empty(0, np.uint16), aspect, size, bool(hounsfield))
        entries.append(CacheEntry(key, record, crc, canvas))
    return Records(pixels, shape), entries


class CacheFileWriter:
    """A cache file that this process writes: sparse at full length until it is closed."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.record_bytes = 2 * int(np.prod(shape))
        self.capacity = max(1, CACHE_FILE_BYTES // self.record_bytes)
        self.count = 0
        pixels = folder / f"canvases-{uuid.uuid4().hex}.pixels"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.entries_file = os.open(pixels.with_suffix(".entries"), flags, 0o666)
        self.pixels_file: int | None = None
        try:
            self.pixels_file = os.open(pixels, flags, 0o666)
            header = _HEADER.pack(_MAGIC, *shape[:2], 0, 0)[:-4]
            _write(self.entries_file, header + struct.pack("<I", zlib.crc32(header)), 0)
            os.ftruncate(self.pixels_file, self.capacity * self.record_bytes)
            self.records = Records(pixels, shape)
        except OSError:
            for opened in (self.entries_file, self.pixels_file):
                if opened is not None:
                    os.close(opened)
            for file in (pixels, pixels.with_suffix(".entries")):
                file.unlink(missing_ok=True)
            raise

    @property
    def full(self) -> bool:
        """Whether it has no room for another record."""
        return self.count == self.capacity

    def append(self, key: bytes, checksum: int, canvas: Canvas) -> int:
        """Write a record, then its entry; return the record's number. Raises OSError."""
        assert self.pixels_file is not None
        pixels = np.ascontiguousarray(canvas.pixels, dtype="<u2")
        _write(self.pixels_file, pixels.data.cast("B"), self.count * self.record_bytes)
        size = canvas.size_mm or (np.nan, np.nan)
        entry = _ENTRY.pack(key, checksum, canvas.hounsfield, canvas.aspect, *size, 0)[:-4]
        entry += struct.pack("<I", zlib.crc32(entry))
        _write(self.entries_file, entry, _HEADER.size + self.count * _ENTRY.size)
        self.count += 1
        return self.count - 1

    def close(self) -> None:
        """Cut off the length that was not used."""
        assert self.pixels_file is not None
        try:
            os.ftruncate(self.pixels_file, self.count * self.record_bytes)
        finally:
            os.close(self.pixels_file)
            os.close(self.entries_file)


def _write(file: int, data: bytes | memoryview, offset: int) -> None:
    """Write all data or raise OSError: a disk that is nearly full takes a part first."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
