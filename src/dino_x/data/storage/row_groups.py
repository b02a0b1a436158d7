"""Encoded images in Parquet: a row group is read at once, and the last ones are kept.

The images of a Parquet file are in a column of bytes, or in a column of structs with `bytes` and
`path`, as in Hugging Face's datasets. To read one row, its whole row group has to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dino_x.data.image import Unreadable
from dino_x.data.storage.archives import Archive, Span, read_range
from dino_x.data.storage.unpacked import VolumeCache

INDEX_METADATA = b"dino_x.index"
NO_IMAGES = "a Parquet file without a column of images (bytes, or a struct with bytes and path)"

# A row group may take this much memory, and as many times what it takes in the file.
_MEMORY, _TIMES = 256 * 2**20, 20
# What pyarrow raises for a damaged file; ValueError for text that is no UTF-8.
_DAMAGED = (pa.ArrowException, OSError, ValueError, KeyError, IndexError)
_ROWS_AT_ONCE = 16  # so that values that a file holds once and repeats are noticed early

groups: VolumeCache[pa.ChunkedArray] = VolumeCache(limit_bytes=512 * 2**20)


@dataclass(frozen=True)
class Layout:
    """Where the images of a Parquet file are.

    Attributes:
        metadata: the footer of the file.
        column: the name of the column of images.
        struct: whether the column holds structs.
        named: whether these have a `path`.
        index: whether the file is an index made by `dino-x index`, which has no images.
    """

    metadata: pq.FileMetaData
    column: str
    struct: bool
    named: bool
    index: bool = False


@lru_cache(maxsize=512)
def layout(archive: Archive) -> Layout:
    """Where the images of a Parquet file are, from its footer. Raises Unreadable, UserError."""
    try:
        with _file(archive) as file:
            parquet = pq.ParquetFile(file)
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except _DAMAGED:
        raise Unreadable("truncated or damaged Parquet file") from None
    if INDEX_METADATA in (schema.metadata or {}):
        return Layout(metadata, "", False, False, index=True)
    found = [field for field in schema if _holds_bytes(field.type)]
    if len(found) > 1:
        found = [field for field in found if field.name == "image"]
        if not found:
            raise Unreadable("several columns hold bytes: call that of the images 'image'")
    if not found:
        raise Unreadable(NO_IMAGES)
    (field,) = found
    struct = pa.types.is_struct(field.type)
    named = struct and any(
        child.name == "path" and _is_text(child.type) for child in field.type.fields
    )
    return Layout(metadata, field.name, struct, named)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(child.name == "bytes" and _holds_bytes(child.type) for child in kind.fields)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def read_row(archive: Archive, row_group: int, row: int) -> bytes:
    """The encoded image in a row of a row group. Raises Unreadable, UserError."""
    group = groups.get((archive, row_group), lambda: read_group(archive, row_group))
    value: bytes | None = group[row].as_py()
    if value is None:
        raise Unreadable("empty file")
    return value


def read_group(archive: Archive, row_group: int) -> pa.ChunkedArray:
    """The encoded images of a row group, in one read of its column. Raises Unreadable."""
    where = layout(archive)
    return _column(archive, row_group, f"{where.column}.bytes" if where.struct else where.column)


def read_names(archive: Archive, row_group: int) -> list[str | None]:
    """The paths of the images of a row group; None for each if the file does not give them."""
    where = layout(archive)
    if not where.named:
        return [None] * int(where.metadata.row_group(row_group).num_rows)
    column = _column(archive, row_group, f"{where.column}.path")
    try:
        names: list[str | None] = column.to_pylist()
    except _DAMAGED:
        raise Unreadable("damaged row group of a Parquet file") from None
    return names


def schema_of(archive: Archive) -> pa.Schema:
    """The columns of a Parquet file, with its metadata. Raises Unreadable, UserError."""
    try:
        with _file(archive) as file:
            return pq.ParquetFile(file, metadata=layout(archive).metadata).schema_arrow
    except _DAMAGED:
        raise Unreadable("truncated or damaged Parquet file") from None


def read_values(archive: Archive, columns: Sequence[str]) -> list[dict[str, list[Any]]]:
    """The values of columns that hold no images: for each row group, the lists by column.

    Raises: Unreadable, UserError.
    """
    groups_of_file = range(layout(archive).metadata.num_row_groups)
    return [
        {name: _values(archive, group, name) for name in columns} for group in groups_of_file
    ]  # fmt: skip


def _values(archive: Archive, row_group: int, name: str) -> list[Any]:
    try:
        with _file(archive) as file:
            parquet = pq.ParquetFile(file, metadata=layout(archive).metadata)
            values: list[Any] = _read(parquet, row_group, name, archive.size).to_pylist()
            return values
    except _DAMAGED:
        raise Unreadable("damaged row group of a Parquet file") from None


def _column(archive: Archive, row_group: int, leaf: str) -> pa.ChunkedArray:
    where = layout(archive)
    try:
        with _file(archive) as file:
            parquet = pq.ParquetFile(file, metadata=where.metadata)
            column = _read(parquet, row_group, leaf, archive.size)
    except _DAMAGED:
        raise Unreadable("damaged row group of a Parquet file") from None
    import pyarrow.compute as pc  # it takes as long to import as the rest of pyarrow

    return pc.struct_field(column, leaf.rpartition(".")[2]) if where.struct else column


def _read(parquet: pq.ParquetFile, row_group: int, leaf: str, file_bytes: int) -> pa.ChunkedArray:
    """A column of a row group. Raises Unreadable if it takes far more memory than the file."""
    group = parquet.metadata.row_group(row_group)
    stored = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    limit = _MEMORY + _TIMES * max(0, min(stored, file_bytes))
    chunks: list[pa.Array] = []
    size = 0
    batches = parquet.iter_batches(
        _ROWS_AT_ONCE, row_groups=[row_group], columns=[leaf], use_threads=False
    )
    for batch in batches:
        size += batch.nbytes
        if size > limit:
            raise Unreadable("a row group of a Parquet file takes far more memory than the file")
        chunks.append(batch.column(0))
    kind = parquet.schema_arrow.field(leaf.partition(".")[0]).type
    return pa.chunked_array(chunks, None if chunks else kind)


def _file(archive: Archive) -> Span:
    """The archive as a file without a buffer: a column of a row group is read at once."""
    return Span(lambda start, length: read_range(archive, start, length), 0, archive.size)
