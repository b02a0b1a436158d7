"""Indexes as one table of columns, read a part at a time: never all of it is in memory.

The rows are in the order in which a run has its images: by the path of their folder, then as they
lie in the index, which is by path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dino_x.data.index.table import DAMAGED, SCHEMA, Facts, read_facts
from dino_x.data.storage.member import as_path
from dino_x.errors import UserError
from dino_x.files import name_of


@dataclass(frozen=True)
class Segment:
    """The rows of one folder in an index.

    Attributes:
        file: the number of the index.
        begin, end: its rows there.
    """

    file: int
    begin: int
    end: int


@dataclass(frozen=True)
class IndexFiles:
    """Some indexes whose folders do not lie in each other.

    Attributes:
        paths: the Parquet files.
        facts: what each says of itself.
        segments: their rows, in order.
    """

    paths: tuple[Path, ...]
    facts: tuple[Facts, ...]
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, paths: Sequence[Path]) -> IndexFiles | None:
        """Find the order of the rows; None if a folder lies in another, so that rows alternate.

        Raises: UserError for an index that is damaged or unfinished.
        """
        facts = tuple(read_facts(path) for path in paths)
        for path, fact in zip(paths, facts, strict=True):
            if not fact.complete:
                raise UserError(
                    f"{path} is unfinished: finish it with `dino-x index ... --out {path}`"
                )
        folders = sorted(source for fact in facts for source in fact.sources)
        for before, after in pairwise(folders):
            if after.is_relative_to(before):
                return None
        found: list[tuple[Path, Segment]] = []
        for number, path in enumerate(paths):
            segments = _segments(path, number, facts[number])
            if segments is None:
                return None
            found += segments
        found.sort(key=lambda pair: pair[0])
        return cls(tuple(paths), facts, tuple(segment for _, segment in found))

    @property
    def sources(self) -> list[Path]:
        """The folders, in the order of the numbers of sources."""
        return [source for fact in self.facts for source in fact.sources]

    def scan(self, columns: Sequence[str], images: bool = True) -> Iterator[pa.Table]:
        """Read some columns, up to a million rows at a time, in order.

        Args:
            columns: names of columns.
            images: whether rows of files that cannot be used are left out.

        Raises: UserError for a file that is damaged.
        """
        wanted = [
            name for name in SCHEMA.names if name in columns or (images and name == "unusable")
        ]
        for segment in self.segments:
            for part in _parts(self.paths[segment.file], segment, wanted):
                if images and part.column("unusable").null_count < len(part):
                    part = part.filter(pc.is_null(part.column("unusable")))
                yield part.select(list(columns))

    def knows_patients(self, number: int) -> bool:
        """Whether the patient of any image in an index is known."""
        parts = (
            part.column("patient")
            for segment in self.segments
            if segment.file == number
            for part in _parts(self.paths[number], segment, ["patient"])
        )
        return any(column.null_count < len(column) for column in parts)

    def states(self) -> list[tuple[str, int, int]]:
        """The absolute path, size and time of each file, which change when it is written again."""
        found = []
        for path in self.paths:
            status = path.stat()
            found.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
        return found


def rows_in(path: Path) -> int:
    """The number of rows of an index, from its footer. Raises UserError."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _opened(path: Path) -> pq.ParquetFile:
    """An index, to be closed again. Raises UserError."""
    try:
        return pq.ParquetFile(pa.OSFile(str(path)))
    except UnicodeEncodeError:  # pyarrow opens no name that is not UTF-8
        return pq.ParquetFile(path.open("rb"))
    except DAMAGED as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is no index or is damaged; remove it, and it is made again")


def _segments(path: Path, number: int, facts: Facts) -> list[tuple[Path, Segment]] | None:
    """The rows of each folder of an index; None if they are not one after another."""
    if len(facts.sources) == 1:
        return [(facts.sources[0], Segment(number, 0, rows_in(path)))]
    found: list[tuple[Path, Segment]] = []
    every = Segment(number, 0, rows_in(path))
    at = 0
    for part in _parts(path, every, ["source"]):
        column = part.column("source").combine_chunks()
        codes = column.indices.to_numpy(zero_copy_only=False)
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, stop in zip(starts, np.append(starts[1:], len(codes)), strict=True):
            folder = as_path(name_of(column.dictionary[int(codes[start])].as_py()) or "")
            if found and found[-1][0] == folder:
                before = found[-1][1]
                found[-1] = (folder, Segment(number, before.begin, at + int(stop)))
            else:
                found.append((folder, Segment(number, at + int(start), at + int(stop))))
        at += len(codes)
    once = len({folder for folder, _ in found}) == len(found)
    return found if once else None


def _parts(path: Path, segment: Segment, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a segment, a row group at a time. Raises UserError."""
    with _opened(path) as file:
        at = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            begin, end = max(segment.begin - at, 0), min(segment.end - at, rows)
            at += rows
            if begin >= end:
                continue
            try:
                part = file.read_row_group(group, columns=list(columns))
            except DAMAGED as error:
                raise _damaged(path) from error
            yield part.slice(begin, end - begin)


def passed_over(facts: Sequence[Facts]) -> dict[str, int]:
    """How many files are no images, by suffix, in all indexes."""
    total: dict[str, int] = {}
    for fact in facts:
        for counts in fact.passed.values():
            for suffix, count in _items(counts):
                total[suffix] = total.get(suffix, 0) + count
    return total


def _items(counts: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    yield from ((suffix, int(count)) for suffix, count in counts.items())
