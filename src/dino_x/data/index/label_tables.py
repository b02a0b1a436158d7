"""Tables of labels as people have them: CSV files as Excel and R write them, and Parquet files.

Every table becomes rows of texts with the same names of columns, so that nothing after this looks
at how a file was written.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from dino_x.data.index.label_kinds import columns_named
from dino_x.data.index.label_values import (
    CALLED,
    column_called,
    known,
    names_of_classes,
    plain,
    texts,
)
from dino_x.errors import UserError, nearest

Row = tuple[int, dict[str, str]]  # its number in the file, the header being 1, and its values

SOURCES = ("folder", "column")  # what --labels takes beside the name of a table
SEPARATORS = (",", ";", "\t")
_ZEROS = re.compile(r"(-?\d+)\.0+")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")


def read_table(file: Path, label_column: str) -> list[Row]:
    """The rows of a CSV or Parquet file.

    Args:
        file: the separators of a CSV file may be commas, semicolons or tabs, its text UTF-8 or
            UTF-16.
        label_column: what is wanted beside the columns of ``CALLED``, see ``columns_named``.

    Returns: every value stripped; the columns of ``CALLED`` have their first names there, whatever
        the file calls them, and labels the name that was asked for. Nothing stands for what is not
        known, such as NaN and NA.

    Raises: UserError for a file that is no such table.
    """
    if not file.is_file():
        raise UserError(
            f"no such file of labels: {file} (give a CSV file, 'folder', or 'column' for a column"
            " beside the images of Parquet files)" + nearest(str(file), SOURCES)
        )
    if file.suffix.lower() == ".parquet":
        header, rows = _rows_of_parquet(file, label_column)
    else:
        header, rows = _rows_of_csv(file)
    labels = columns_named(label_column, header)
    names = _names(file, header, labels)
    found = []
    for number, row in rows:
        values = {name: known(row[at]) for name, at in names.items()}
        values["path"] = row[names["path"]]
        found.append((number, values))
    for label in labels:
        _alike(found, label)
    return found


def _names(file: Path, header: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """The place of each column that is used, by the name that it has here. Raises UserError."""
    found: dict[str, int] = {}
    for label in labels:
        if label not in CALLED:
            found[label] = _place(file, header, label)
    for name in CALLED:
        called = column_called(name, header)
        if called is not None:
            found[name] = _place(file, header, called)
        elif name in labels and name != "path":
            found[name] = _place(file, header, name)  # is not there, and says so
    if "path" not in found:
        raise UserError(
            f"{file} has no column 'path'{nearest('path', header)} (its columns:"
            f" {', '.join(header) or 'none'}); call the one with the files of the images 'path'"
        )
    return found


def _place(file: Path, header: Sequence[str], name: str) -> int:
    """The place of a column, whether or not capitals are right. Raises UserError."""
    places = [place for place, of in enumerate(header) if of == name]
    if not places:
        places = [place for place, of in enumerate(header) if of.lower() == name.lower()]
    if not places:
        raise UserError(
            f"{file} has no column '{name}'{nearest(name, header)}"
            f" (its columns: {', '.join(header) or 'none'})"
        )
    if len(places) > 1:
        raise UserError(f"{file} has {len(places)} columns '{name}': rename all but one of them")
    return places[0]


def _alike(rows: Sequence[Row], label: str) -> None:
    """Spell whole numbers alike: 1.0 and 1 are one class, if all labels are numbers."""
    values = [row[label] for _, row in rows if row[label]]
    if not all(re.fullmatch(r"-?\d+(\.\d+)?", value) for value in values):
        return
    for _, row in rows:
        zeros = _ZEROS.fullmatch(row[label])
        if zeros is not None:
            row[label] = zeros[1]


def _rows_of_csv(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows of a CSV file, numbered. Raises UserError."""
    text = _text(file)
    separator = _separator(text)
    try:
        rows = [[value.strip() for value in row] for row in csv.reader(text, delimiter=separator)]
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as a CSV file: {error}") from error
    header = rows[0] if rows else []
    found = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        if len(row) > len(header) and any(row[len(header) :]):
            raise UserError(
                f"{file}, row {number} has {len(row)} values and the header {len(header)}: put"
                f" quotation marks around a value that holds '{separator}'"
            )
        row = (row + [""] * len(header))[: len(header)]
        if separator == ";":  # where a list has semicolons, a number has a decimal comma
            row = [_with_point(value) for value in row]
        found.append((number, row))
    return header, found


def _text(file: Path) -> io.StringIO:
    """What a file of text holds. Raises UserError."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")  # Excel writes a mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} cannot be read as a CSV file in UTF-8 (byte {error.start:,}): save it as 'CSV"
            f" UTF-8' in Excel, or say 'iconv -f WINDOWS-1252 -t UTF-8 {file.name}'"
        ) from error
    return io.StringIO(text, newline="")


def _separator(text: io.StringIO) -> str:
    """The separator with which the header names a path, or else has most columns."""
    line = text.readline()
    text.seek(0)
    headers = {one: next(csv.reader([line], delimiter=one), []) for one in SEPARATORS}
    for separator, header in headers.items():
        if any(plain(name) in CALLED["path"] for name in header):
            return separator
    return max(SEPARATORS, key=lambda one: len(headers[one]))


def _with_point(value: str) -> str:
    return value.replace(",", ".") if _DECIMAL_COMMA.fullmatch(value) else value


def _rows_of_parquet(
    file: Path, label_column: str
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows of a Parquet table, numbered. Raises UserError."""
    try:
        schema = parquet.read_schema(file)
        header = list(schema.names)
        named = {place: name for name, place in _names_of(file, header, label_column).items()}
        table = parquet.read_table(file, columns=[header[place] for place in sorted(named)])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as a Parquet table: {error}") from error
    names = names_of_classes(schema.metadata)
    columns = {name: texts(table[name].to_pylist(), names.get(name)) for name in table.schema.names}
    rows = [
        (number, [columns[name][at] if name in columns else "" for name in header])
        for number, at in enumerate(range(table.num_rows), start=1)
    ]
    return header, rows


def _names_of(file: Path, header: Sequence[str], label_column: str) -> dict[str, int]:
    return _names(file, header, columns_named(label_column, header))
