"""The index as a Parquet file: one row an image, and one for a file that cannot be used.

Any tool reads it (`pandas.read_parquet`, DuckDB, Polars). What is needed to continue it is in the
schema's metadata. Instead of identifiers of patients it holds salted keys, see `identity`; names of
files and folders are in it as they are.

Two columns of the file have an older name for an archive: `shard` and `shard_size`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dino_x.data.identity import fingerprint
from dino_x.data.image import ImageRef, Reading
from dino_x.data.index.headers import Record
from dino_x.data.storage.archives import Archive, address
from dino_x.data.storage.member import Member, as_path
from dino_x.errors import UserError
from dino_x.files import name_of, parse_json, spelled_name, write_atomically

VERSION = 3
_METADATA = b"dino_x.index"

_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int32()
SCHEMA = pa.schema(
    [
        ("path", _TEXT),  # relative to the source
        ("source", pa.dictionary(pa.int32(), _TEXT)),  # the folder
        ("shard", pa.dictionary(pa.int32(), _TEXT)),  # the archive that it lies in
        ("offset", pa.int64()),  # in a tar, bytes from its beginning
        ("row_group", _COUNT),  # in a Parquet file
        ("row", _COUNT),  # of the row group
        ("format", _TEXT),
        ("frame", _COUNT),
        ("slice_axis", _TEXT),
        ("height", _COUNT),
        ("width", _COUNT),
        ("channels", _COUNT),
        ("bits", _COUNT),
        ("kind", _TEXT),
        ("modality", _TEXT),
        ("image_type", _TEXT),
        ("sop_class", _TEXT),
        ("body_part", _TEXT),
        ("spacing_row_mm", _NUMBER),
        ("spacing_column_mm", _NUMBER),
        ("thickness_mm", _NUMBER),
        ("position_mm", _NUMBER),
        ("orientation", _TEXT),  # directions of rows and columns: six numbers and spaces
        ("stack", _TEXT),
        ("acquisition", _TEXT),
        ("slope", _NUMBER),
        ("intercept", _NUMBER),
        ("photometric", _TEXT),
        ("window_low", _NUMBER),
        ("window_high", _NUMBER),
        ("remark", _TEXT),
        ("patient", _TEXT),
        ("series", _TEXT),
        ("label", _TEXT),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("shard_size", pa.int64()),
        ("etag", _TEXT),  # how an object store identifies the file's state
        ("content", _TEXT),
        ("unusable", _TEXT),
    ]
)
_OF_A_FILE = 13  # columns: the first 6 and the last 7
_OF_AN_IMAGE = len(SCHEMA) - _OF_A_FILE
_IMAGE_COLUMNS = SCHEMA.names[6:-7]
# Columns that are attributes of an image of the same name.
_AS_THEY_ARE = (
    "format", "frame", "height", "width", "channels", "bits", "kind", "modality", "image_type",
    "sop_class", "body_part", "thickness_mm", "position_mm", "stack", "acquisition", "slope",
    "intercept", "photometric", "remark", "patient", "series",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """The content of an index.

    Attributes:
        sources: the folders, as absolute paths.
        records: the files, sorted by path within each source.
        reading: what the user said of files that do not say it themselves.
        complete: whether all files of the sources are in it.
        salt: `identity.fingerprint` of the salt that its keys were made with.
        passed: how many files are no images, by suffix: for each archive that has some, by its
            place, and under "" for all other files.
    """

    sources: tuple[Path, ...]
    records: list[Record]
    reading: Reading
    complete: bool = True
    salt: str = ""
    passed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def passed_over(self) -> dict[str, int]:
        """How many files are no images, by suffix."""
        total: Counter[str] = Counter()
        for counts in self.passed.values():
            total.update(counts)
        return dict(total)


def as_arrow(records: Iterable[Record], sources: Sequence[Path]) -> pa.Table:
    """The rows of some files, with the columns of `SCHEMA`.

    Args:
        records: the files; their paths lie below their sources.
        sources: the folders that `Record.source` is a number of.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    appends = [column.append for column in columns.values()]
    for record in records:
        folder = sources[record.source]
        place = _place(record, folder)
        for ref in record.refs or (None,):
            for append, value in zip(appends, _row(record, ref, place), strict=True):
                append(value)
    for name in _NAMES:
        columns[name] = [spelled_name(value) for value in columns[name]]
    return pa.Table.from_arrays(
        [pa.array(columns[field.name], _plain(field.type)).cast(field.type) for field in SCHEMA],
        schema=SCHEMA,
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _place(record: Record, folder: Path) -> tuple[Any, ...]:
    """The place of a file: the values of the first columns of `SCHEMA`."""
    path = os.path.relpath(record.path, folder)
    if not isinstance(record.path, Member):
        return path, address(folder), None, None, None, None
    member = record.path
    archive = path[: -len(member.name_inside) - 1]
    if member.row_group < 0:
        return path, address(folder), archive, member.offset, None, None
    return path, address(folder), archive, None, member.row_group, member.row


def _row(record: Record, ref: ImageRef | None, place: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of one row, in the order of `SCHEMA`."""
    file = record.file
    archive_size = file.size if isinstance(record.path, Member) else None
    after = (
        record.label, record.size, record.mtime_ns, archive_size, file.etag, record.content,
        record.unusable,
    )  # fmt: skip
    if ref is None:
        return (*place, *(None,) * _OF_AN_IMAGE, *after)
    row, column = ref.spacing_mm or (None, None)
    low, high = ref.window or (None, None)
    return (
        *place, ref.format, ref.frame, ref.axis, ref.height, ref.width, ref.channels, ref.bits,
        ref.kind, ref.modality, ref.image_type, ref.sop_class, ref.body_part, row, column,
        ref.thickness_mm, ref.position_mm, _as_text(ref.orientation), ref.stack, ref.acquisition,
        ref.slope, ref.intercept, ref.photometric, low, high, ref.remark, ref.patient, ref.series,
        *after,
    )  # fmt: skip


def write_table(table: Table, path: Path) -> None:
    """Write an index, whole or not at all; what was there is replaced.

    Raises: UserError if it cannot be written; the old file is then untouched.
    """
    rows = as_arrow(table.records, table.sources)
    rows = rows.replace_schema_metadata(schema_of(table).metadata)

    def write(path: Path) -> None:
        with path.open("wb") as file:  # pyarrow opens no name that is not UTF-8
            pq.write_table(rows, file, compression="zstd")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the file system refuses"
        raise UserError(f"cannot write {path}: {reason}; nothing that was there is lost") from None


def schema_of(table: Table) -> pa.Schema:
    """The columns of an index with what it says of itself; its records are not looked at."""
    facts = {
        "version": VERSION,
        "sources": [address(source) for source in table.sources],
        "slice_axis": table.reading.slice_axis,
        "modality": table.reading.modality,
        "axes": table.reading.axes,
        "complete": table.complete,
        "salt": fingerprint(),
        "passed": table.passed,
    }
    return SCHEMA.with_metadata({_METADATA: json.dumps(facts)})


def read_table(path: Path) -> Table:
    """Read an index from its Parquet file.

    Raises: UserError if it cannot be opened, is damaged or is some other Parquet file.
    """
    with _readable(path), path.open("rb") as file:
        rows = pq.read_table(file)
        facts = _facts(rows.schema, path)
        columns = [_values(rows.column(name), name not in _UNIQUE) for name in SCHEMA.names]
        records = list(RecordsOfRows(facts.sources).records(columns))
        return Table(
            facts.sources, records, facts.reading, facts.complete, facts.salt, facts.passed
        )


@dataclass(frozen=True)
class Facts:
    """What an index says of itself; see `Table`."""

    sources: tuple[Path, ...]
    reading: Reading
    complete: bool
    salt: str
    passed: Mapping[str, Mapping[str, int]]


def read_facts(path: Path) -> Facts:
    """Read what an index says of itself, and none of its rows. Raises UserError."""
    with _readable(path), path.open("rb") as file:
        return _facts(pq.read_schema(file), path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise UserError for what reading a damaged index raises."""
    try:
        yield
    except DAMAGED:
        raise UserError(
            f"{path} is no index or is damaged; remove it, and it is made again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'damaged'}") from None


# What reading raises where a file holds other things than we write.
DAMAGED = (
    pa.ArrowException, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError
)  # fmt: skip

_NAMES = ("path", "source", "shard", "label")  # of files and folders, which may not be UTF-8


_UNIQUE = ("path", "content", "offset")


def _values(column: pa.ChunkedArray, repeats: bool) -> list[Any]:
    """The values of a column; if it repeats them, equal values are one object in memory."""
    if not repeats:
        values: list[Any] = column.to_pylist()
        return values
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    shared = [*encoded.dictionary.to_pylist(), None]
    numbers = pc.fill_null(encoded.indices, len(shared) - 1).to_pylist()
    return [shared[number] for number in numbers]


@lru_cache(maxsize=4096)
def _pair(low: float, high: float) -> tuple[float, float]:
    """Both numbers, as one object for all images that have them."""
    return low, high


def _facts(schema: pa.Schema, path: Path) -> Facts:
    metadata = schema.metadata or {}
    if _METADATA not in metadata:
        raise UserError(f"{path} is a Parquet file, but no index made by `dino-x index`")
    facts: dict[str, Any] = parse_json(metadata[_METADATA])
    if facts["version"] != VERSION or schema.names != SCHEMA.names:
        raise UserError(f"{path} is an index of another version; remove it, and it is made again")
    sources = tuple(as_path(source) for source in facts["sources"])
    reading = Reading(facts["slice_axis"], facts["modality"], facts["axes"])
    return Facts(sources, reading, facts["complete"], facts["salt"], facts["passed"])


class RecordsOfRows:
    """Makes records of the rows of an index. Members of one archive share its object.

    Args:
        sources: the folders that `Record.source` is a number of.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        self.sources = sources
        self._number_of = {address(source): number for number, source in enumerate(sources)}
        self._archives: dict[tuple[Any, ...], Archive] = {}

    def records(self, columns: Sequence[Sequence[Any]]) -> Iterator[Record]:
        """The files of some rows.

        Args:
            columns: the values of each column of `SCHEMA`, with names as the file spells them.
        """
        named = [
            list(map(name_of, column)) if name in _NAMES else column
            for name, column in zip(SCHEMA.names, columns, strict=True)
        ]
        rows = zip(*named, strict=True)
        for _, of_file in groupby(rows, key=lambda row: (row[1], row[0])):
            yield _record(list(of_file), self.sources, self._number_of, self._archives)


def _record(
    rows: list[tuple[Any, ...]],
    sources: Sequence[Path],
    number_of: dict[str, int],
    archives: dict[tuple[Any, ...], Archive],
) -> Record:
    """A file from its rows: the opposite of `_row`. Members of an archive share its object."""
    name, folder, inside, offset, row_group, row = rows[0][:6]
    label, size, mtime_ns, archive_size, etag, content, unusable = rows[0][-7:]
    source = number_of[folder]
    if inside is None:
        path = sources[source] / name
    else:
        which = (source, inside, archive_size, mtime_ns, etag)
        if which not in archives:
            archives[which] = Archive(sources[source] / inside, archive_size, mtime_ns, etag)
        place = (offset, size) if row_group is None else (-1, -1, row_group, row)
        path, etag = Member(f"{folder}/{name}", archives[which], *place), None
    state = None if inside is not None or etag is not None else (size, mtime_ns)
    refs = () if unusable is not None else tuple(_ref(row, path, source, state) for row in rows)
    return Record(path, source, size, mtime_ns, refs, unusable, content, label, etag)


def _ref(row: tuple[Any, ...], path: Path, source: int, state: tuple[int, int] | None) -> ImageRef:
    of = dict(zip(_IMAGE_COLUMNS, row[6:-7], strict=True))
    down, low = of["spacing_row_mm"], of["window_low"]
    return ImageRef(
        path=path,
        source=source,
        state=state,
        spacing_mm=None if down is None else _pair(down, of["spacing_column_mm"]),
        window=None if low is None else _pair(low, of["window_high"]),
        axis=of["slice_axis"],
        orientation=_as_numbers(of["orientation"]),
        **{name: of[name] for name in _AS_THEY_ARE},
    )


def _as_text(numbers: tuple[float, ...] | None) -> str | None:
    return None if numbers is None else " ".join(f"{number:g}" for number in numbers)


@lru_cache(maxsize=4096)
def _as_numbers(text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(map(float, text.split()))


def moved(record: Record, path: Path, source: int) -> Record:
    """The record of a file, or of a file in an archive, that has another path and source.

    Args:
        record: the file.
        path: the path of the file, or of the archive that it lies in.
        source: the number of the folder that it is found in.
    """
    if isinstance(record.path, Member):
        path = record.path.moved(path)
    refs = tuple(replace(ref, path=path, source=source) for ref in record.refs)
    return replace(record, path=path, source=source, refs=refs)
