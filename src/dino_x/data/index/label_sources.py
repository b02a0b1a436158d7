"""Classes of files: from the names of folders, from a table, or from columns beside the images."""

import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dino_x.data.index.label_columns import EMPTY, UNITS, items_from_columns
from dino_x.data.index.label_folders import items_from_folders
from dino_x.data.index.label_kinds import columns_named, joined
from dino_x.data.index.label_tables import read_table
from dino_x.data.index.splits import NAMES_OF_SPLITS, Item
from dino_x.data.storage.member import Member
from dino_x.errors import UserError

FOLDER, COLUMN = "folder", "column"  # what --labels takes beside the name of a table
AGAIN = "rows that say of an image what another row says"


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


def items_from_csv(
    file: Path, images: list[Path], roots: list[Path], label_column: str
) -> tuple[list[Item], dict[str, int]]:
    """The rows that name an image and have a value in ``label_column``, and how many were left out.

    Raises:
        UserError: for a file that is no such table, and where no row names an image.
    """
    rows = read_table(file, label_column)
    columns = columns_named(label_column, rows[0][1] if rows else ())
    image_at = _by_place(images)
    left_out = {EMPTY: 0, "rows that match no image": 0, AGAIN: 0}
    bases = [file.parent, *roots]
    below = Below(images)
    items: dict[Path, Item] = {}
    unmatched = ""
    for number, row in rows:
        found = _find(row["path"], bases, image_at)
        files = [found] if found is not None else below.folder(row["path"], bases)
        if not files:
            left_out["rows that match no image"] += 1
            unmatched = unmatched or row["path"]
            continue
        label = _label(row, columns, f"{file}, row {number}")
        if not label:
            left_out[EMPTY] += len(files)
            continue
        of_row = Item(files[0], row["path"], label, _patient(row), _split(row), number,
                      row.get("volume") or None, row.get("slide") or None)  # fmt: skip
        for image in files:
            item = of_row if found is not None else _in_folder(of_row, image, roots)
            if image in items:
                refuse_contradiction(file, items[image], item)
                left_out[AGAIN] += 1
            else:
                items[image] = item
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
    rows = [(row["path"], _patient(row)) for _, row in read_table(file, label_column)]
    if not any(patient for _, patient in rows):
        return {}
    image_at = _by_place(list(images))
    found = ((_find(path, [file.parent, *roots], image_at), patient) for path, patient in rows)
    return {image: patient for image, patient in found if image is not None and patient}


def _patient(row: Mapping[str, str]) -> str | None:
    """What stays on one side with the image of a row; None if the table does not say."""
    return next((row[name] for name in UNITS if row.get(name)), None)


def _split(row: Mapping[str, str]) -> str | None:
    """The split of a row, such as ``train`` for Training; None if the table has no such column."""
    split = row.get("split")
    return None if split is None else NAMES_OF_SPLITS.get(split.lower(), split)


def _in_folder(of_row: Item, image: Path, roots: Sequence[Path]) -> Item:
    """The item of an image that lies in the folder which a row is about."""
    root = next((root for root in roots if image.is_relative_to(root)), None)
    key = str(image) if root is None else "/".join(image.relative_to(root).parts)
    return replace(of_row, file=image, key=key)


def refuse_contradiction(file: Path, one: Item, other: Item) -> None:
    """Refuse two rows that say different things about an image. Raises UserError."""
    if replace(one, row=0, key="") != replace(other, row=0, key=""):
        about = "the label"
        if one.label == other.label:
            about = "the patient, split, volume or slide"
        raise UserError(
            f"{file}: rows {one.row} and {other.row} are about the same image, and {about} differs:"
            " remove one of them; several labels of an image stand in one row, as mass|nodule"
        )


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


class Below:
    """The images below each folder, for rows that are about a whole folder, such as a series."""

    def __init__(self, images: Sequence[Path]) -> None:
        self.images = images
        self.found: dict[str, list[Path]] | None = None  # made where it is asked for

    def folder(self, path: str, bases: Sequence[Path]) -> list[Path]:
        """The images below the folder ``path`` of one of the bases; none if there is no such."""
        if self.found is None:
            self.found = {}
            for image in self.images:
                for around in Path(os.path.realpath(image)).parents:
                    self.found.setdefault(str(around), []).append(image)
        spellings = dict.fromkeys((path, path.replace("\\", "/")))
        for spelling in spellings:
            if spelling.strip("./") == "":  # everything is no folder of its own
                continue
            for base in bases:
                found = self.found.get(os.path.realpath(base / spelling))
                if found:
                    return found
        return []


def _find(path: str, bases: list[Path], image_at: dict[str, Path]) -> Path | None:
    """The image at a path, which may have been written where backslashes are between folders."""
    for spelling in dict.fromkeys((path, path.replace("\\", "/"))):
        for base in bases:
            image = image_at.get(os.path.realpath(base / spelling))
            if image is not None:
                return image
        image = image_at.get(f"{_INSIDE}{posixpath.normpath(spelling)}")
        if image is not None:
            return image
    return None
