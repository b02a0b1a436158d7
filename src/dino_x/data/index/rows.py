"""The images of a large index: a sequence whose images are made when they are asked for.

A list of `ImageRef` takes 720 bytes an image. `Rows` takes a bit or two, and reads what it needs
from the row file (row_file.py), or whole columns from the index.
"""

from __future__ import annotations

import hashlib
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dino_x.data.image import ImageRef
from dino_x.data.index.chosen import Chosen
from dino_x.data.index.conditions import NUMBER, columns_of, filter_of, none_meets
from dino_x.data.index.index_files import IndexFiles
from dino_x.data.index.layout import by_first_appearance
from dino_x.data.index.making_rows import (
    COUNTED,
    HASHED,
    Progress,
    add_names,
    are_pictures,
    counted,
    of_sole_issuers,
    opened_rows,
    sole_issuers_in,
)
from dino_x.data.index.row_file import BLOCK_SCHEMA, ROWS_IN_BLOCK, RowFile
from dino_x.data.index.table import SCHEMA, RecordsOfRows
from dino_x.data.storage.member import any_remote

_SPACING = ("spacing_row_mm", "spacing_column_mm")


class Rows(Sequence[ImageRef]):
    """Some or all images of indexes.

    Args:
        files: the indexes.
        file: their row file.
        chosen: which of its images these are; None for all.
        kinds: the kinds that they were chosen by, None among them for plain views of anatomy, if
            they were chosen by nothing else.
    """

    def __init__(
        self,
        files: IndexFiles,
        file: RowFile,
        chosen: Chosen | None = None,
        kinds: frozenset[str | None] | None = None,
    ) -> None:
        self.files, self.file, self.chosen, self.kinds = files, file, chosen, kinds
        self._images = RecordsOfRows(files.sources)

    def __reduce__(self) -> Any:
        """Another process opens the files itself, and shares them through the system's cache."""
        chosen = None if self.chosen is None else (self.chosen.bits, self.chosen.length)
        return _reopened, (self.files.paths, chosen, self.kinds)

    def __len__(self) -> int:
        return self.file.rows if self.chosen is None else len(self.chosen)

    @overload
    def __getitem__(self, which: int) -> ImageRef: ...
    @overload
    def __getitem__(self, which: slice) -> list[ImageRef]: ...
    def __getitem__(self, which: int | slice) -> ImageRef | list[ImageRef]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        number = operator.index(which)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(which)
        block, row = divmod(int(self.numbers(np.array([number]))[0]), ROWS_IN_BLOCK)
        columns = zip(BLOCK_SCHEMA.names, self.file.block(block).columns, strict=True)
        values = {name: [of[row].as_py()] for name, of in columns if of.null_count < len(of)}
        (ref,) = self._refs(values, 1)
        return ref

    def __iter__(self) -> Iterator[ImageRef]:
        pieces = None if self.chosen is None else self.chosen.pieces(ROWS_IN_BLOCK)
        for block in range(-(-self.file.rows // ROWS_IN_BLOCK)):
            wanted = None if pieces is None else next(pieces)
            if wanted is not None and not wanted.any():
                continue
            batch = self.file.block(block)
            columns = zip(BLOCK_SCHEMA.names, batch.columns, strict=True)
            refs = self._refs({name: of.to_pylist() for name, of in columns}, batch.num_rows)
            if wanted is None:
                yield from refs
            else:
                yield from (ref for ref, taken in zip(refs, wanted, strict=True) if taken)

    def numbers(self, which: np.ndarray) -> np.ndarray:
        """The numbers in the row file of some of these images, int64 [m]."""
        return which if self.chosen is None else self.chosen.nth(which)

    def numbers_at(self, name: str, places: np.ndarray) -> np.ndarray:
        """The numbers in the row file of the images at some places of its section `name`."""
        numbers = self.file.items(name, places)
        if len(numbers) and numbers.max() >= self.file.rows:
            raise self.file.damaged()
        return numbers

    def numbers_here(self, rows: np.ndarray) -> np.ndarray:
        """The opposite: the numbers here of images with these numbers in the row file."""
        return rows if self.chosen is None else self.chosen.rank(rows)

    def hash(self) -> str:
        """See `hash_of_rows`. What the row file says of all its images is not counted again."""
        if self.chosen is None:
            return str(self.file.facts["hash"])
        digest = hashlib.sha256()
        for part in self.scan(HASHED):
            add_names(digest, part)
        return digest.hexdigest()

    def one_of_each_file(self) -> Iterator[ImageRef]:
        """The first image of each file that has any of these images, in order."""
        begins = Chosen(self.file.array("file begins"), self.file.rows)
        first = begins.nth(np.arange(len(begins)))
        here = self.numbers_here(np.append(first, self.file.rows))
        for number in here[:-1][np.diff(here) > 0].tolist():
            yield self[number]

    @property
    def remote(self) -> bool:
        """Whether any image of the indexes lies in an object store."""
        return bool(self.file.facts["remote"])

    @property
    def in_row_groups(self) -> bool:
        """Whether any image of the indexes lies in a Parquet file."""
        return bool(self.file.facts["in row groups"])

    @cached_property
    def all_pictures(self) -> bool:
        """Whether all images are files of 8-bit pictures, by their suffix."""
        if self.file.facts["pictures"] == self.file.rows:
            return True
        if self.chosen is None:
            return False
        return all(are_pictures(part.column("path")).all() for part in self.scan(["path"]))

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Read some columns of these images from the index, a part at a time, in order."""
        if self.chosen is None:
            yield from self.files.scan(columns)
            return
        start = 0
        for part in self.files.scan(columns):
            wanted = self.chosen.contains(np.arange(start, start + len(part)))
            start += len(part)
            yield part.filter(pa.array(wanted))

    def counts(self, *names: str) -> Counter[tuple[Any, ...]]:
        """How many images have which values.

        Args:
            names: attributes of an image: height, width, channels, spacing_mm, kind or remark.
        """
        columns = [name for of in names for name in (_SPACING if of == "spacing_mm" else (of,))]
        found: pa.Table | None = None
        for part in self._counted_parts(columns):
            some = counted(part)
            found = some if found is None else counted(pa.concat_tables([found, some]))
        counts: Counter[tuple[Any, ...]] = Counter()
        for row in [] if found is None else found.to_pylist():
            values = tuple(_value(row, name) for name in names)
            counts[values] += row["count"]
        return counts

    def _counted_parts(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, from what the row file has counted, if that is of just these images."""
        counts = self.file.facts["counts"]
        if counts is None or not (self.chosen is None or self.kinds is not None):
            yield from self.scan(columns)
            return
        schema = pa.schema([*(SCHEMA.field(name) for name in COUNTED), ("count", pa.int64())])
        table = pa.Table.from_pydict(counts, schema=schema)
        if self.kinds is not None:
            table = table.filter(_is_one_of("kind", self.kinds))
        yield table.select([*columns, "count"])

    def of_kinds(self, kinds: Iterable[str | None]) -> Rows:
        """The images of some kinds; None is the kind of plain views of anatomy."""
        wanted = frozenset(kinds)
        if all(kind in wanted for (kind,) in self.counts("kind")):
            return self
        alone = self.chosen is None
        condition = _is_one_of("kind", wanted)
        found = self._where(lambda part: part.filter(condition), ["kind"])
        return Rows(self.files, self.file, found, wanted if alone else None)

    def having(self, column: str, values: Set[Any]) -> Rows:
        """The images that have one of some values in a column."""
        condition = pc.field(column).isin(list(values))
        return Rows(
            self.files, self.file, self._where(lambda part: part.filter(condition), [column])
        )

    def where(self, condition: str) -> Rows:
        """The images that meet a condition, see `conditions.select`.

        Raises: UserError for a condition that is not understood, or that no image meets.
        """
        wanted = [name for name in SCHEMA.names if name in columns_of(condition)]
        left = filter_of(condition)
        alone = sole_issuers_in(self.files) if "patient" in wanted else set()
        found = self._where(lambda part: left(of_sole_issuers(part, alone)), wanted or ["height"])
        if not len(found):
            raise none_meets(condition, len(self))
        return Rows(self.files, self.file, found)

    def keep(self, wanted: np.ndarray) -> Rows:
        """Those of these images that are wanted, bool [n]."""
        if self.chosen is None:
            return Rows(self.files, self.file, Chosen.of([wanted]))
        numbers = self.numbers(np.flatnonzero(wanted))
        flags = np.zeros(self.file.rows, dtype=bool)
        flags[numbers] = True
        return Rows(self.files, self.file, Chosen.of([flags]))

    def sources(self) -> np.ndarray:
        """The number of each image's source, int [n]."""
        if not self.file.has("sources"):
            return np.zeros(len(self), np.int32)
        pieces = list(self.source_pieces())
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def source_pieces(self) -> Iterator[np.ndarray]:
        """The same, a million rows of the row file at a time."""
        start = 0
        for piece in self.file.pieces("sources"):
            numbers = np.arange(start, start + len(piece))
            start += len(piece)
            yield piece if self.chosen is None else piece[self.chosen.contains(numbers)]

    @property
    def known(self) -> bool:
        """Whether the patient or the series of any image is known."""
        known = self.file.array("known")
        if self.chosen is not None:
            known = known & self.chosen.bits[: len(known)]
        return bool(known.any())

    def _where(self, take: Callable[[pa.Table], pa.Table], columns: Sequence[str]) -> Chosen:
        """Which rows of the row file are among these and are left by a filter."""

        def masks() -> Iterator[np.ndarray]:
            start = 0
            for part in self.files.scan(columns):
                numbers = pa.array(np.arange(len(part), dtype=np.int64))
                left = take(part.append_column(NUMBER, numbers)).column(NUMBER).to_numpy()
                mask = np.zeros(len(part), dtype=bool)
                mask[left] = True
                if self.chosen is not None:
                    mask &= self.chosen.contains(np.arange(start, start + len(part)))
                start += len(part)
                yield mask

        return Chosen.of(masks())

    def _refs(self, columns: Mapping[str, Sequence[Any]], count: int) -> list[ImageRef]:
        """The images of some rows of the row file, from the columns that are not empty."""
        nothing = [None] * count
        records = self._images.records([columns.get(name, nothing) for name in SCHEMA.names])
        return [ref for record in records for ref in record.refs]


@dataclass(frozen=True)
class Groups:
    """What of n images belongs together.

    Attributes:
        patient, series: int [n], numbers by first appearance.
        position: [n], what the images of a series are ordered by.
        known: whether any patient or series is known.
    """

    patient: np.ndarray
    series: np.ndarray
    position: np.ndarray
    known: bool


def groups_of_rows(rows: Rows) -> Groups:
    """What of the images belongs together; in memory, about 50 bytes an image of the index."""
    file = rows.file
    laid = file.array("laid").astype(np.int64)
    numbers = rows.numbers(np.arange(len(rows)))
    found = []
    for name in ("patient begins", "series begins"):
        bits = np.unpackbits(file.array(name), bitorder="little")[: len(laid)]
        of = np.empty(len(laid), np.int64)
        of[laid] = np.cumsum(bits, dtype=np.int64) - 1
        found.append(by_first_appearance(of[numbers]).astype(np.int64))
    place = np.empty(len(laid), np.int64)
    place[laid] = np.arange(len(laid))
    return Groups(found[0], found[1], place[numbers], rows.known)


def _is_one_of(column: str, wanted: frozenset[str | None]) -> pc.Expression:
    texts = [text for text in wanted if text is not None]
    condition = pc.field(column).isin(pa.array(texts, pa.string()))
    condition = condition & pc.field(column).is_valid()
    return condition | pc.field(column).is_null() if None in wanted else condition


def _value(row: dict[str, Any], name: str) -> Any:
    if name != "spacing_mm":
        return row[name]
    down, across = (row[column] for column in _SPACING)
    return None if down is None else (down, across)


def counts_of(rows: Sequence[ImageRef], *names: str) -> Counter[tuple[Any, ...]]:
    """How many images have which values of some attributes, see `Rows.counts`."""
    if isinstance(rows, Rows):
        return rows.counts(*names)
    if len(names) == 1:
        (name,) = names
        return Counter((getattr(row, name),) for row in rows)
    return Counter(map(operator.attrgetter(*names), rows))


def hash_of_rows(rows: Sequence[ImageRef]) -> str:
    """A hash of the names, frames and sizes of images, in their order."""
    if isinstance(rows, Rows):
        return rows.hash()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(
            f"{row.path.name}|{row.frame}|{row.height}|{row.width}\n".encode(errors="replace")
        )
    return digest.hexdigest()


def any_in_store(rows: Sequence[ImageRef]) -> bool:
    """Whether any image lies, or may lie, in an object store."""
    return rows.remote if isinstance(rows, Rows) else any_remote(rows)


def having(rows: Sequence[ImageRef], name: str, values: Set[Any]) -> Sequence[ImageRef]:
    """The images whose attribute is one of some values."""
    if isinstance(rows, Rows):
        return rows.having(name, values)
    return [row for row in rows if getattr(row, name) in values]


def filtered(rows: Sequence[ImageRef], wanted: np.ndarray) -> Sequence[ImageRef]:
    """Those images that are wanted, bool [n]: a list, or `Rows` of `Rows`."""
    if isinstance(rows, Rows):
        return rows.keep(wanted)
    return [row for row, taken in zip(rows, wanted, strict=True) if taken]


def open_rows(files: IndexFiles, on_progress: Progress | None = None) -> tuple[Rows, bool]:
    """All images of some indexes, and whether their row file had to be made now.

    Raises: OSError if it cannot be made, UserError for an index that is damaged.
    """
    file, made = opened_rows(files, on_progress)
    return Rows(files, file), made


def _reopened(
    paths: tuple[Path, ...],
    chosen: tuple[np.ndarray, int] | None,
    kinds: frozenset[str | None] | None,
) -> Rows:
    """The same images in another process."""
    files = IndexFiles.of(paths)
    assert files is not None
    file, _ = opened_rows(files)
    return Rows(files, file, None if chosen is None else Chosen(*chosen), kinds)
