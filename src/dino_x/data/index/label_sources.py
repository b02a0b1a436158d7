"""Classes of files: from the names of folders, from a table, or from columns beside the images."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from dino_x.data.index.label_columns import UNITS, items_from_columns
from dino_x.data.index.label_kinds import joined
from dino_x.data.index.splits import NAMES_OF_SPLITS, Item
from dino_x.data.storage.member import Member
from dino_x.errors import UserError, nearest

FOLDER, COLUMN = "folder", "column"  # what --labels takes beside the name of a table


def is_table(labels: str | Path | None) -> bool:
    """Whether labels are in a table of their own."""
    return labels is not None and str(labels) not in (FOLDER, COLUMN)


def items_from(
    labels: str | Path, files: list[Path], roots: list[Path], label_column: str
) -> tuple[list[Item], dict[str, int]]:
    """The files that have a label, and how many were left out, by reason. Raises UserError."""
    if is_table(labels):
        return items_from_csv(Path(labels), files, roots, label_column)
    if str(labels) == COLUMN:
        return items_from_columns(files, roots, label_column)
    return items_from_folders(files, roots)


def items_from_folders(files: list[Path], roots: list[Path]) -> tuple[list[Item], dict[str, int]]:
    """The files that lie in a folder below a data path, with its name as their class.

    Folders that are called after splits, such as train and test, give the split; the class is then
    the folder below them.

    Raises: UserError if there is no such folder, or if it cannot be told what the folders are.
    """
    found: list[tuple[Path, str, tuple[str, ...]]] = []
    for file in files:
        for root in roots:
            below = file.relative_to(root).parts if file.is_relative_to(root) else ()
            folders = _folders(file, below)
            if folders:
                found.append((file, "/".join(below), folders))
                break
    if not found:
        raise UserError(
            f"no image is in a folder below {_shown(roots)}: with '--labels folder' the class is"
            " the name of the first folder below the data path, or inside an archive"
        )
    if not _are_splits([folders for _, _, folders in found], roots):
        return [Item(file, key=key, label=folders[0]) for file, key, folders in found], {}
    items = []
    for file, key, (split, label, *_) in found:
        items.append(Item(file, key, label, split=NAMES_OF_SPLITS[split.lower()]))
    return items, {}


def _are_splits(all_folders: Sequence[tuple[str, ...]], roots: list[Path]) -> bool:
    """Whether the first folders are splits, such as train and test, with classes below them.

    Raises: UserError where that cannot be told.
    """
    first = sorted({folders[0] for folders in all_folders})
    splits = [name for name in first if name.lower() in NAMES_OF_SPLITS]
    if len(splits) < 2:
        return False
    if len(splits) < len(first):
        other = next(name for name in first if name not in splits)
        raise UserError(
            f"the folders below {_shown(roots)} are splits ({', '.join(splits)}) and others, such"
            f" as '{other}': name the folder of one kind with --data, or give a CSV file of labels"
        )
    if any(len(folders) < 2 for folders in all_folders):
        raise UserError(
            f"the folders below {_shown(roots)} are splits ({', '.join(splits)}), but some of their"
            " images are in no folder of a class: put them into one, or give a CSV file of labels"
        )
    return True


def _folders(file: Path, below: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that a file lies in below a data path; an archive does not count as a folder."""
    if isinstance(file, Member) and below:
        archive = len(below) - 1 - file.name_inside.count("/") - 1
        return (*below[:archive], *below[archive + 1 : -1])
    return below[:-1]


def items_from_csv(
    file: Path, images: list[Path], roots: list[Path], label_column: str
) -> tuple[list[Item], dict[str, int]]:
    """The rows that name an image and have a value in ``label_column``, and how many were left out.

    Raises:
        UserError: for a file that is no such table, and where no row names an image.
    """
    rows = read_csv(file, label_column)
    columns = columns_of(label_column, rows[0][1] if rows else {})
    image_at = _by_place(images)
    left_out = {"images with an empty label": 0, "rows that match no image": 0}
    items: dict[Path, Item] = {}
    unmatched = ""
    for number, row in rows:
        found = _find(row["path"], [file.parent, *roots], image_at)
        if found is None:
            left_out["rows that match no image"] += 1
            unmatched = unmatched or row["path"]
            continue
        label = _label(row, columns, f"{file}, row {number}")
        if not label:
            left_out["images with an empty label"] += 1
            continue
        if found in items:
            raise UserError(
                f"{file}: rows {items[found].row} and {number} are about the same image:"
                " remove one of them"
            )
        patient = _patient(row)
        split = row.get("split")
        volume, slide = row.get("volume") or None, row.get("slide") or None
        items[found] = Item(found, row["path"], label, patient, split, number, volume, slide)
    if left_out["rows that match no image"] == len(rows) > 0:
        raise UserError(
            f"{file}: no path matches an image (a path there: '{unmatched}', an image here:"
            f" '{images[0]}'): paths must be relative to the CSV file's folder or to --data"
        )
    return list(items.values()), left_out


def patients_from_csv(
    file: Path, images: Sequence[Path], roots: Sequence[Path], label_column: str
) -> dict[Path, str]:
    """The patient of each image that a table of labels names one for, with or without a label.

    Raises: UserError for a file that is no such table.
    """
    rows = [(row["path"], _patient(row)) for _, row in read_csv(file, label_column)]
    if not any(patient for _, patient in rows):
        return {}
    image_at = _by_place(list(images))
    found = ((_find(path, [file.parent, *roots], image_at), patient) for path, patient in rows)
    return {image: patient for image, patient in found if image is not None and patient}


def _patient(row: Mapping[str, str]) -> str | None:
    """What stays on one side with the image of a row; None if the table does not say."""
    return next((row[name] for name in UNITS if row.get(name)), None)


def columns_of(label_column: str, known: Iterable[str]) -> list[str]:
    """The columns that hold the labels: one, or several with commas between their names."""
    if label_column in known:
        return [label_column]
    return [name.strip() for name in label_column.split(",") if name.strip()]


def _label(row: dict[str, str], columns: list[str], where: str) -> str:
    """The label of a row: the value of one column, or the names of the columns that hold 1."""
    return row[columns[0]] if len(columns) == 1 else joined(row, columns, where)


def _by_place(images: list[Path]) -> dict[str, Path]:
    """The images by their real path, and those in archives also by their name inside.

    So a table made for a folder holds for the archives that the folder was packed in. A name that
    is in two archives does not count.
    """
    found = {os.path.realpath(image): image for image in images}
    members = [image for image in images if isinstance(image, Member)]
    count = Counter(member.name_inside for member in members)
    for member in members:
        if count[member.name_inside] == 1:
            found[f"{_INSIDE}{member.name_inside}"] = member
    return found


_INSIDE = "in an archive: "


def read_csv(file: Path, label_column: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with their numbers (1 is the header), every value stripped.

    Raises: UserError for a file that is no such table.
    """
    if not file.is_file():
        raise UserError(
            f"no such file of labels: {file} (give a CSV file, 'folder', or 'column' for a column"
            " beside the images of Parquet files)" + nearest(str(file), [FOLDER, COLUMN])
        )
    if file.suffix.lower() == ".parquet":
        return _rows_of_parquet(file, label_column)
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:  # Excel writes a BOM
            reader = csv.DictReader(stream, restval="")
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            _check_columns(file, columns, label_column)
            return [
                (number, {name: (row[name] or "").strip() for name in columns})
                for number, row in enumerate(reader, start=2)
            ]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error


def _rows_of_parquet(file: Path, label_column: str) -> list[tuple[int, dict[str, str]]]:
    """The rows of a Parquet table, as those of a CSV file."""
    try:
        names = parquet.read_schema(file).names
        _check_columns(file, names, label_column)
        wanted = {"path", "split", "mask", "volume", *UNITS, *columns_of(label_column, names)}
        table = parquet.read_table(file, columns=[name for name in names if name in wanted])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as a Parquet table: {error}") from error
    rows = table.to_pylist()
    return [
        (number, {name: "" if value is None else str(value).strip() for name, value in row.items()})
        for number, row in enumerate(rows, start=1)
    ]


def _check_columns(file: Path, columns: list[str], label_column: str) -> None:
    """Raise UserError for a table without paths or without the labels."""
    for needed in ("path", *columns_of(label_column, columns)):
        if needed not in columns:
            raise UserError(
                f"{file} has no column '{needed}'{nearest(needed, columns)}"
                f" (its columns: {', '.join(columns) or 'none'})"
            )


def _find(path: str, bases: list[Path], image_at: dict[str, Path]) -> Path | None:
    for base in bases:
        image = image_at.get(os.path.realpath(base / path))
        if image is not None:
            return image
    return image_at.get(f"{_INSIDE}{posixpath.normpath(path)}")


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
