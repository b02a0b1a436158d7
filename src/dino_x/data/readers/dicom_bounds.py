"""Limits on DICOM headers that were damaged, or made to keep a reader busy."""

import zlib
from typing import Any, BinaryIO

from pydicom.uid import DeflatedExplicitVRLittleEndian

from dino_x.data.image import Unreadable

_MOST_ZEROS = 1000  # elements of zeros, one after another
_MOST_INFLATED = 200_000_000


class NoZeros:
    """A file that is damaged where it holds a long run of zeros instead of elements.

    pydicom takes each eight of them for an empty element, which takes a second a megabyte.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._zeros = 0

    def read(self, count: int = -1) -> bytes:
        """Read as the file does. Raises Unreadable."""
        data = self._file.read(count)
        self._zeros = self._zeros + 1 if data == b"\0" * 8 else 0
        if self._zeros > _MOST_ZEROS:
            raise Unreadable("damaged DICOM header: zeros where elements should be")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def refuse_inflation(file: BinaryIO) -> None:
    """Raise Unreadable for a deflated file that inflates beyond any image; rewind the file."""
    head = file.read(1024)
    file.seek(0)
    if head[128:132] == b"DICM" and DeflatedExplicitVRLittleEndian.encode() in head:
        start = 144 + int.from_bytes(head[140:144], "little")
        file.seek(start)
        inflated = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated.decompress(file.read(), _MOST_INFLATED)
        file.seek(0)
        if not inflated.eof:
            raise Unreadable("truncated, or inflates to more than any image")
