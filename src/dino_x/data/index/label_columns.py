"""Labels that lie beside the images, in columns of the Parquet files that hold them.

So Hugging Face's datasets are: a column of images, a column ``label`` with whole numbers, and the
names of the classes in the metadata of the file.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dino_x.data.image import Unreadable
from dino_x.data.index.label_kinds import columns_named, joined
from dino_x.data.index.label_values import (
    Names,
    column_called,
    known,
    names_of_classes,
    texts,
)
from dino_x.data.index.splits import NAMES_OF_SPLITS, Item
from dino_x.data.storage.archives import Archive, address
from dino_x.data.storage.member import Member
from dino_x.data.storage.row_groups import read_values, schema_of
from dino_x.errors import UserError, nearest

UNITS = ("patient", "group", "slide")  # columns that say what stays on one side; the first counts
EMPTY = "images with an empty label"


@dataclass(frozen=True)
class Table:
    """The columns of one Parquet file that say something about its images.

    Attributes:
        columns: those of the labels.
        values: the values of each column, by row group and then by row.
        split: of all its images, from the name of the file; None if that names none.
        kind: what the labels are, ``words`` or ``numbers``.
    """

    columns: list[str]
    values: list[dict[str, list[str]]]
    split: str | None
    kind: str

    def row(self, member: Member) -> dict[str, str]:
        """The values beside an image."""
        group = self.values[member.row_group]
        return {name: values[member.row] for name, values in group.items()}


def items_from_columns(
    images: Sequence[Path], roots: Sequence[Path], label_column: str
) -> tuple[list[Item], dict[str, int]]:
    """The images of Parquet files with the label beside them, and how many have none.

    The split is that of the column ``split``, else that of the names of the files where these name
    two or more, such as ``train-00000-of-00002.parquet``.

    Args:
        images: all images; those that lie in no Parquet file have no label here.
        roots: the data paths.
        label_column: the column of the labels, or several of 0 and 1 with commas between them.

    Raises: UserError if no image lies in a Parquet file, and for a file without the column.
    """
    members = [file for file in images if isinstance(file, Member) and file.row_group >= 0]
    if not members:
        raise UserError(
            "no image is in a Parquet file: '--labels column' takes labels from a column beside the"
            " images; give 'folder' or a CSV file"
        )
    archives = list(dict.fromkeys(member.archive for member in members))
    tables = {archive: read_table(archive, label_column) for archive in archives}
    check_alike(tables)
    check_splits(tables)
    named = len({table.split for table in tables.values()}) > 1
    items, empty = [], 0
    for member in members:
        table = tables[member.archive]
        row = table.row(member)
        label = label_of_row(row, table.columns, member)
        if not label:
            empty += 1
            continue
        unit = next((row[name] for name in UNITS if row.get(name)), None)
        split = row.get("split") or (table.split if named else None)
        if split is not None:
            split = NAMES_OF_SPLITS.get(split.lower(), split)
        volume, slide = row.get("volume") or None, row.get("slide") or None
        key = key_of(member, roots)
        items.append(Item(member, key, label, unit, split, member.row + 1, volume, slide))
    return items, {EMPTY: empty}


def read_table(archive: Archive, label_column: str) -> Table:
    """What stands beside the images of a Parquet file. Raises UserError."""
    try:
        schema = schema_of(archive)
        columns = columns_of(archive, schema, label_column)
        called = {name: column_called(name, schema.names) for name in ("split", "volume", *UNITS)}
        beside = {name: of for name, of in called.items() if of is not None}
        names = names_of_classes(schema.metadata)
        wanted = list(dict.fromkeys([*beside.values(), *columns]))
        values = []
        for group in read_values(archive, wanted):
            found = {name: texts(column, names.get(name)) for name, column in group.items()}
            renamed = {name: found[of] for name, of in beside.items()}
            values.append({name: list(map(known, of)) for name, of in (found | renamed).items()})
    except Unreadable as error:
        raise UserError(f"{address(archive.path)}: its labels cannot be read: {error}") from error
    return Table(columns, values, split_of_name(archive.path), kind_of(schema, columns[0], names))


def kind_of(schema: pa.Schema, column: str, names: Names) -> str:
    """Whether labels are words, or numbers without names."""
    kind = schema.field(column).type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    words = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "words" if words or column in names else "numbers"


def columns_of(archive: Archive, schema: pa.Schema, label_column: str) -> list[str]:
    """The columns of the labels. Raises UserError for one that is not there, or holds no labels."""
    columns = columns_named(label_column, schema.names)
    for column in columns:
        if column not in schema.names:
            raise UserError(
                f"{address(archive.path)} has no column '{column}'"
                f"{nearest(column, schema.names)} (its columns: {', '.join(schema.names)}); name"
                " that of the labels with --label-column"
            )
        if not _holds_labels(schema.field(column).type):
            raise UserError(
                f"{address(archive.path)}: the column '{column}' holds"
                f" {schema.field(column).type}, and neither words, numbers nor lists of them"
            )
    return columns


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_labels(kind.value_type)
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer,
             pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)  # fmt: skip
    return any(test(kind) for test in tests)


def label_of_row(row: Mapping[str, str], columns: Sequence[str], member: Member) -> str:
    """The label of an image: the value of one column, or the names of the columns that hold 1."""
    if len(columns) == 1:
        return row[columns[0]]
    where = f"{address(member.archive.path)}, row {member.row + 1}"
    return joined(dict(row), columns, where)


def split_of_name(path: Path) -> str | None:
    """The split that the name of a file says with its first word, or else its folder."""
    for name in (path.name, path.parent.name):
        first = re.split(r"[^a-z]+", name.lower().partition(".")[0])[0]
        if first in NAMES_OF_SPLITS:
            return NAMES_OF_SPLITS[first]
    return None


def check_splits(tables: Mapping[Archive, Table]) -> None:
    """Refuse files of which some are named after splits and others are not. Raises UserError."""
    if any("split" in group for table in tables.values() for group in table.values):
        return
    splits = {table.split for table in tables.values()}
    if len(splits - {None}) < 2 or None not in splits:
        return
    named = next(archive for archive, table in tables.items() if table.split is not None)
    other = next(archive for archive, table in tables.items() if table.split is None)
    raise UserError(
        f"some Parquet files are named after splits, such as {named.path.name}, and others are not,"
        f" such as {other.path.name}: name all of them alike, or give a column 'split'"
    )


def check_alike(tables: Mapping[Archive, Table]) -> None:
    """Refuse files of which one has names of classes and another has numbers. Raises UserError."""
    kinds: dict[str, Archive] = {}
    for archive, table in tables.items():
        kinds.setdefault(table.kind, archive)
    if len(kinds) == 2:
        raise UserError(
            f"the labels in {kinds['words'].path.name} are words and those in"
            f" {kinds['numbers'].path.name} are numbers: give them one kind, or name the files of"
            " one kind with --data"
        )


def key_of(member: Member, roots: Sequence[Path]) -> str:
    """The path of an image below its data path, which stays the same when the data are moved."""
    for root in roots:
        if member.is_relative_to(root):
            return "/".join(member.relative_to(root).parts)
    return f"{member.archive.path.name}/{member.name_inside}"
