"""The files of features: parts while they are made, then a table and a grid of patches.

M images with features, D features of a token, P x P patches.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dino_x.data.image import ImageRef
from dino_x.files import spelled_name, write_atomically

GRID = "patches.npy"
GRID_TYPE = np.dtype(np.float16)
FEATURES = {"cls": "cls", "mean_patch": "patch"}  # columns, and how their numbers begin in CSV
NUMBER_IN_CSV = 14  # bytes of a float32 with nine digits, about
_NOTE = b"dino_x.part"


@dataclass(frozen=True)
class Part:
    """A stretch of images, one after another in the index.

    Attributes:
        start, end: their positions, end excluded.
        kept: how many have features.
        skipped: path and reason of the others.
        file: the Parquet file.
    """

    start: int
    end: int
    kept: int
    skipped: list[tuple[str, str]]
    file: Path


@dataclass(frozen=True)
class Block:
    """Features of M images.

    Attributes:
        images: the images.
        places: their paths below their folders, and these folders.
        cls_MD, mean_MD: float32.
        grid_MPPD: float16, or None if patches are not wanted.
    """

    images: Sequence[ImageRef]
    places: Sequence[tuple[str, str]]
    cls_MD: np.ndarray
    mean_MD: np.ndarray
    grid_MPPD: np.ndarray | None = None

    def table(self) -> pa.Table:
        """The columns of the result."""
        text = pa.string()
        columns = {
            "path": pa.array([spelled_name(path) for path, _ in self.places], text),
            "folder": pa.array([spelled_name(folder) for _, folder in self.places], text),
            "frame": pa.array([image.frame for image in self.images], pa.int32()),
            "patient": pa.array([image.patient for image in self.images], text),
            "kind": pa.array([image.kind for image in self.images], text),
            "cls": _vectors(self.cls_MD),
            "mean_patch": _vectors(self.mean_MD),
        }
        return pa.table(columns)


def _vectors(features_MD: np.ndarray) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(features_MD, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, features_MD.shape[1])


def read_parts(folder: Path) -> list[Part]:
    """The parts from the first image on without a gap; what lies behind a gap does not count."""
    found: list[Part] = []
    for file in sorted(folder.glob("part-*.parquet")):
        try:
            with file.open("rb") as opened:  # pyarrow opens no name that is not UTF-8
                note = json.loads(pq.read_schema(opened).metadata[_NOTE])
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
            break
        skipped = [(path, reason) for path, reason in note["skipped"]]
        part = Part(note["start"], note["end"], note["kept"], skipped, file)
        if part.start != (found[-1].end if found else 0):
            break
        found.append(part)
    return found


def write_part(
    folder: Path, start: int, end: int, block: Block, skipped: list[tuple[str, str]]
) -> Part:
    """Write a part whole or not at all. Raises: OSError."""
    file = folder / f"part-{start:09d}.parquet"
    kept = len(block.images)
    note = {"start": start, "end": end, "kept": kept, "skipped": skipped}
    table = block.table().replace_schema_metadata({_NOTE: json.dumps(note).encode()})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as opened:
            pq.write_table(table, opened)

    write_atomically(file, write)
    return Part(start, end, kept, skipped, file)


class GridFile:
    """A ``.npy`` file of patches that grows, float16 [M, P, P, D].

    Its head states the number of images, and is written last; NumPy leaves room in it for that.

    Args:
        folder: of the parts.
        side: P.
        width: D.
    """

    def __init__(self, folder: Path, side: int, width: int) -> None:
        self.path = folder / GRID
        self.shape = (side, side, width)
        self.image_bytes = side * side * width * GRID_TYPE.itemsize
        self.file: BinaryIO | None = None

    def holds(self, images: int) -> bool:
        """Whether so many images are in the file."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        return size >= images * self.image_bytes

    def begin(self, kept: int) -> None:
        """Open the file, and forget all but its first ``kept`` images. Raises: OSError."""
        self.file = self.path.open("r+b" if self.path.is_file() else "w+b")
        self._write_head(0)
        whole = self.file.tell() + kept * self.image_bytes
        self.file.truncate(whole)
        self.file.seek(whole)

    def add(self, grid_MPPD: np.ndarray) -> None:
        """Write further images to the disk. Raises: OSError."""
        assert self.file is not None
        self.file.write(np.ascontiguousarray(grid_MPPD, GRID_TYPE).data)
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self, images: int) -> None:
        """State the number of images, and close the file. Raises: OSError."""
        assert self.file is not None
        self._write_head(images)
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _write_head(self, images: int) -> None:
        assert self.file is not None
        self.file.seek(0)
        shape = (images, *self.shape)
        head = {
            "shape": shape,
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(GRID_TYPE),
        }
        np.lib.format.write_array_header_1_0(self.file, head)


def write_table(parts: Sequence[Part], path: Path) -> None:
    """Put parts together to a table, ``.parquet`` or ``.csv``, one part in memory at a time.

    Raises: OSError.
    """
    write = _write_csv if path.suffix == ".csv" else _write_parquet
    write_atomically(path, lambda temporary: write(parts, temporary))


def _tables(parts: Sequence[Part]) -> Iterator[pa.Table]:
    for part in parts:
        with part.file.open("rb") as file:
            yield pq.read_table(file).replace_schema_metadata(None)


def _write_parquet(parts: Sequence[Part], path: Path) -> None:
    writer: pq.ParquetWriter | None = None
    with path.open("wb") as file:
        for table in _tables(parts):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def _write_csv(parts: Sequence[Part], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, table in enumerate(_tables(parts)):
            plain = [name for name in table.column_names if name not in FEATURES]
            vectors = [as_matrix(table, name) for name in FEATURES]
            if number == 0:
                writer.writerow([*plain, *_numbered(vectors)])
            numbers_MF = np.concatenate(vectors, axis=1)
            for row, numbers_F in zip(table.select(plain).to_pylist(), numbers_MF, strict=True):
                writer.writerow([*row.values(), *(f"{number:.9g}" for number in numbers_F)])


def _numbered(vectors: Sequence[np.ndarray]) -> list[str]:
    names = zip(FEATURES.values(), vectors, strict=True)
    return [f"{name}_{i}" for name, vector in names for i in range(vector.shape[1])]


def as_matrix(table: Any, column: str) -> np.ndarray:
    """A column of vectors as float32 [M, D]."""
    vectors = table[column].combine_chunks()
    flat = vectors.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(table), vectors.type.list_size)
