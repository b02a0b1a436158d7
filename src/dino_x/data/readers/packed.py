"""Values that are packed or written as text: unpacked as a whole, and no further than asked for."""

from __future__ import annotations

import gzip
import zlib
from typing import IO, Any

import numpy as np

_BLOCK = 2**20
_LONGEST_WORD = 1000  # digits of a number


def unpacked(file: IO[bytes], packed: str, offset: int, size: int) -> np.ndarray:
    """Unpack so many bytes, and nothing that follows them.

    Args:
        file: the file, where what is packed begins.
        packed: "gzip" or "zlib".
        offset: how many unpacked bytes come before those that are wanted.
        size: how many are wanted.

    Raises: EOFError if there are fewer; other errors if they are damaged.
    """
    values = np.empty(size, np.uint8)
    source: Any = Inflated(file) if packed == "zlib" else gzip.GzipFile(fileobj=file)
    source.seek(offset)
    view, done = values.data, 0
    while done < size:
        got = source.readinto(view[done : done + _BLOCK])
        if not got:
            raise EOFError
        done += got
    source.read(1)  # at the end of the file its checksum is verified
    return values


class Inflated:
    """What a zlib stream unpacks to, read forwards."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._unpacker = file, zlib.decompressobj(zlib.MAX_WBITS | 32)

    def seek(self, offset: int) -> None:
        """Pass over the first bytes."""
        while offset > 0 and (passed := self.read(min(offset, _BLOCK))):
            offset -= len(passed)

    def read(self, count: int) -> bytes:
        """Read up to so many bytes, and at least one before the end."""
        data = b""
        while not data and not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._file.read(2**16)
            data = self._unpacker.decompress(packed, count)
            if not packed and not data:
                break
        return data

    def readinto(self, view: memoryview) -> int:
        """Read up to as many bytes as there is room for."""
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def from_text(file: IO[bytes], count: int, dtype: np.dtype) -> np.ndarray:
    """Read so many values that are written as text with blanks in between, as bytes of their type.

    Raises: EOFError if there are fewer; ValueError or OverflowError for what is no such number.
    """
    number = float if dtype.kind == "f" else int
    parts, found, rest = [np.empty(0, dtype)], 0, b""
    while found < count:
        block = file.read(_BLOCK)
        words = (rest + block).replace(b",", b" ").split()
        whole = not block or block[-1:].isspace()
        rest = b"" if whole or not words else words.pop()
        if len(rest) > _LONGEST_WORD:
            raise ValueError
        parts.append(np.array([number(word) for word in words[: count - found]], dtype))
        found += len(parts[-1])
        if not block:
            break
    if found < count:
        raise EOFError
    return np.concatenate(parts).astype(dtype, copy=False).view(np.uint8)
