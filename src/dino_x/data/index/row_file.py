"""A row file: the images of an index, kept so that any of them is found at once.

    INDEX.rows    beside INDEX.parquet: blocks of rows, sections, a footer, its length, a word

An index of Parquet is read a million rows at a time, so a run on many images has this beside it. It
is made once (making_rows.py), and again when the index has changed. A *block* holds some rows as an
Arrow record batch, compressed. A *section* is an array: where blocks begin, the order of images by
patient and series (`layout.py`), and bits.

All is read with `pread` where it is needed, and nothing is mapped: the system's cache is shared by
all processes of a machine in either case, and a file that is cut off while it is mapped would end
the process with a bus error instead of a line. Blocks, sections and the footer have checksums.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from dino_x.data.index.table import SCHEMA
from dino_x.errors import UserError
from dino_x.files import parse_json
from dino_x.machine.system import read_at

SUFFIX = ".rows"
VERSION = 1  # raise it when any section means something else: older files are made again
ROWS_IN_BLOCK = 64  # with 128, a tenth less space and half as much time again for an image

_WORD = b"DINOXROW"
_END = struct.Struct("<QI8s")  # length of the footer, its checksum, the word
_BLOCK = struct.Struct("<II")  # length before compression, checksum of what follows
_CODEC = "zstd"
_MOST_IN_BLOCK = 2**26  # bytes; usual are 24 KB
_LEFT_OUT = ("content", "label", "unusable")  # an image has no use for them
BLOCK_SCHEMA = pa.schema(
    [
        (field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
        for field in SCHEMA
        if field.name not in _LEFT_OUT
    ]
)


class CutOffError(Exception):
    """A row file that is not whole, or not one of this version."""


@dataclass(frozen=True)
class Section:
    """Where an array lies: its first byte, its number of elements and their type."""

    begin: int
    count: int
    dtype: str


class RowFile:
    """An open row file. It stays readable if another one is put in its place.

    Args:
        path: of the file.

    Attributes:
        facts: what its maker wrote of it, see making_rows.py.

    Raises: CutOffError for a file that is not whole, OSError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = io.FileIO(path, "r")
        size = self._file.seek(0, io.SEEK_END)
        if size < _END.size:
            raise CutOffError
        length, checksum, word = _END.unpack(self._at(size - _END.size, _END.size))
        if word != _WORD or length > size:
            raise CutOffError
        footer = self._at(size - _END.size - length, length)
        if zlib.crc32(footer) != checksum:
            raise CutOffError
        content = parse_json(footer)
        if content["version"] != VERSION:
            raise CutOffError
        self.facts: Mapping[str, Any] = content["facts"]
        self._sections = {name: Section(*of) for name, of in content["sections"].items()}
        self._checksums: Mapping[str, int] = content.get("checksums", {})
        self.block = lru_cache(maxsize=8)(self._block)

    @property
    def rows(self) -> int:
        """The number of images."""
        return int(self.facts["images"])

    def has(self, name: str) -> bool:
        """Whether there is a section of this name."""
        return name in self._sections

    def items(self, name: str, at: np.ndarray) -> np.ndarray:
        """Some elements of a section, int64 [m].

        Args:
            name: of the section.
            at: their numbers, int64 [m].
        """
        section = self._sections[name]
        width = np.dtype(section.dtype).itemsize
        data = [self._at(section.begin + width * number, width) for number in at.tolist()]
        return np.frombuffer(b"".join(data), section.dtype).astype(np.int64)

    def pieces(self, name: str, count: int = 2**20) -> Iterator[np.ndarray]:
        """A section, so many elements at a time."""
        section = self._sections[name]
        width = np.dtype(section.dtype).itemsize
        for start in range(0, section.count, count):
            length = min(count, section.count - start)
            data = self._at(section.begin + width * start, width * length)
            yield np.frombuffer(data, section.dtype)

    def array(self, name: str) -> np.ndarray:
        """A whole section."""
        checksum, pieces = 0, []
        for piece in self.pieces(name):
            checksum = zlib.crc32(piece.data.cast("B"), checksum)
            pieces.append(piece)
        if checksum != self._checksums.get(name, checksum):
            raise self.damaged()
        return np.concatenate(pieces) if pieces else np.zeros(0, self._sections[name].dtype)

    def _block(self, number: int) -> pa.RecordBatch:
        """The rows from `number` times `ROWS_IN_BLOCK` on, as `BLOCK_SCHEMA` has them."""
        begin, end = self.items("blocks", np.array([number, number + 1])).tolist()
        data = self._at(begin, end - begin)
        try:
            length, checksum = _BLOCK.unpack_from(data)
            if zlib.crc32(data[_BLOCK.size :]) != checksum or length > _MOST_IN_BLOCK:
                raise self.damaged()
            raw = pa.decompress(data[_BLOCK.size :], length, codec=_CODEC)
            block = pa.ipc.read_record_batch(raw, BLOCK_SCHEMA)
            block.validate(full=True)
        except (pa.ArrowException, OSError, ValueError, struct.error):
            raise self.damaged() from None
        return block

    def _at(self, begin: int, length: int) -> bytes:
        """Exactly so many bytes. Raises UserError where they are not there any more."""
        try:
            data = read_at(self._file.fileno(), length, begin)
            while 0 < len(data) < length:  # a single read takes at most 2 GB
                more = read_at(self._file.fileno(), length - len(data), begin + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        except (ValueError, OverflowError, MemoryError):
            raise self.damaged() from None
        if len(data) < length:
            raise self.damaged()
        return data

    def damaged(self) -> UserError:
        """The error for a file that holds something else than its maker wrote."""
        return UserError(
            f"{self.path} is cut off or damaged; remove it, and it is made again from the index"
        )


class RowFileWriter:
    """Writes a row file: blocks first, then sections, then the footer.

    Args:
        file: an empty file, opened for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._codec = pa.Codec(_CODEC, compression_level=1)
        self._blocks = [0]
        self._sections: dict[str, tuple[int, int, str]] = {}
        self._checksums: dict[str, int] = {}

    def block(self, rows: pa.RecordBatch) -> None:
        """Write `ROWS_IN_BLOCK` rows; only the last block has fewer."""
        raw = rows.serialize()
        data = self._codec.compress(raw, asbytes=True)
        self._file.write(_BLOCK.pack(raw.size, zlib.crc32(data)) + data)
        self._blocks.append(self._blocks[-1] + _BLOCK.size + len(data))

    def section(self, name: str, values: np.ndarray) -> None:
        """Write an array."""
        begin = self._file.tell()
        data = np.ascontiguousarray(values).data.cast("B") if len(values) else b""
        self._file.write(data)
        self._checksums[name] = zlib.crc32(data)
        self._sections[name] = (begin, len(values), values.dtype.str)

    def close(self, facts: Mapping[str, Any]) -> None:
        """Write the footer. The file is left open."""
        self.section("blocks", np.array(self._blocks, np.int64))
        content = {"version": VERSION, "facts": facts, "sections": self._sections}
        content["checksums"] = self._checksums
        footer = json.dumps(content).encode()
        self._file.write(footer + _END.pack(len(footer), zlib.crc32(footer), _WORD))
