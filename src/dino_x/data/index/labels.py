"""Labels of images, from the names of folders or from a CSV file."""

import csv
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dino_x.data.index.index import folders_of
from dino_x.data.index.splits import Item, check_classes, check_given, make_split
from dino_x.data.readers.registry import ImageRef
from dino_x.data.storage.member import Member
from dino_x.errors import UserError, nearest


@dataclass(frozen=True)
class Labelled:
    """Images with a class and a side.

    Attributes:
        refs: the N images, of train and of the tested split, and of val if it was asked for.
        labels: the class of each image, [N] strings.
        is_test: [N] bool, which images are tested.
        is_val: [N] bool, which images settings are chosen on. All False if val was not asked for,
            is not given, or is the tested split.
        patients: the patient of each image, or its file where the patient is not known, [N];
            never to be written out.
        patients_known: whether ``patients`` are patients for every image (else some are files).
        tested: the tested split, ``test`` or ``val``.
        split_by: how the sides were decided: ``given``, ``patient`` or ``image``.
        left_out: how many files were not used, by reason.
        warnings: sentences for the user.
    """

    refs: list[ImageRef]
    labels: np.ndarray
    is_test: np.ndarray
    is_val: np.ndarray
    patients: np.ndarray
    patients_known: bool
    tested: str
    split_by: str
    left_out: dict[str, int]
    warnings: list[str]

    @property
    def classes(self) -> list[str]:
        """The names of the C classes, sorted."""
        return sorted(set(self.labels.tolist()))

    @property
    def is_train(self) -> np.ndarray:
        """Which images are the reference set, [N] bool."""
        return ~(self.is_test | self.is_val)

    def keep(self, rows: np.ndarray, reason: str) -> "Labelled":
        """Keep only the images ``rows`` ([N] bool); the others are left out for ``reason``.

        Raises:
            UserError: if a class is no longer on both sides.
        """
        kept = replace(
            self,
            refs=[ref for ref, wanted in zip(self.refs, rows, strict=True) if wanted],
            labels=self.labels[rows],
            is_test=self.is_test[rows],
            is_val=self.is_val[rows],
            patients=self.patients[rows],
            left_out=self.left_out | {reason: int((~rows).sum())},
        )
        train, test = kept.labels[kept.is_train], kept.labels[kept.is_test]
        check_classes(train.tolist(), test.tolist(), self.tested)
        return kept


def load_labels(
    labels: str | Path,
    refs: Sequence[ImageRef],
    data_paths: Sequence[str | Path],
    *,
    label_column: str = "label",
    with_val: bool = False,
) -> Labelled:
    """Give each image its class and its side.

    Args:
        labels: ``folder`` (the class is the first folder below the data path), or a CSV file with
            the columns ``path`` (relative to the CSV file's folder or to a data path),
            ``label_column``, and, if they are known, ``patient`` and ``split`` (train, val, test).
        refs: the images found below the data paths. All frames of a file share its label.
        data_paths: the folders the images are in.
        label_column: the column that holds the class.
        with_val: whether to return the images of val, too, see ``Labelled.is_val``.

    Returns:
        The labelled images. Train is the reference set; test is tested, or val where there is no
        test. Where no split is given, one is made, by patient if patients are known.

    Raises:
        UserError: for labels that cannot be read, that match no image, that hold one class only,
            or a patient in two splits, or a class that is missing on one side.
    """
    frames: dict[Path, list[ImageRef]] = {}
    for ref in refs:
        frames.setdefault(ref.path, []).append(ref)
    roots = folders_of(data_paths)
    if str(labels) == "folder":
        items, left_out = _items_from_folders(list(frames), roots)
        warnings: list[str] = []
    else:
        items, left_out = items_from_csv(Path(labels), list(frames), roots, label_column)
        warnings = _warn_of_missing(left_out, len(items))
    items = _with_patients_of(items, frames)
    unnamed = len(frames) - len(items) - left_out.get("images with an empty label", 0)
    left_out["images that the labels do not name"] = unnamed

    sides, split_by = sides_of(items)
    warnings += warn_of_unknown_patients(items, split_by)
    tested = tested_side(sides)
    wanted = {"train", tested} | ({"val"} if with_val else set())
    used = [(item, side) for item, side in zip(items, sides, strict=True) if side in wanted]
    left_out["images of a split not used"] = len(items) - len(used)
    check_classes(
        [item.label for item, side in used if side == "train"],
        [item.label for item, side in used if side == tested],
        tested,
    )
    rows = [(ref, item, side) for item, side in used for ref in frames[item.file]]
    return Labelled(
        refs=[ref for ref, _, _ in rows],
        labels=np.array([item.label for _, item, _ in rows]),
        is_test=np.array([side == tested for _, _, side in rows]),
        is_val=np.array([side not in ("train", tested) for _, _, side in rows]),
        patients=np.array([item.patient or f"file {item.key}" for _, item, _ in rows]),
        patients_known=all(item.patient is not None for item, _ in used),
        tested=tested,
        split_by=split_by,
        left_out={reason: count for reason, count in left_out.items() if count},
        warnings=warnings,
    )


def label_of(
    labels: str | Path,
    files: list[Path],
    *,
    data_paths: Sequence[str | Path],
    label_column: str = "label",
) -> dict[Path, str]:
    """The class of each file that has one; see ``load_labels`` for arguments and errors."""
    roots = folders_of(data_paths)
    if not files:
        return {}
    if str(labels) == "folder":
        items, _ = _items_from_folders(files, roots)
    else:
        items, _ = items_from_csv(Path(labels), files, roots, label_column)
    return {item.file: item.label for item in items}


def _with_patients_of(items: list[Item], frames: dict[Path, list[ImageRef]]) -> list[Item]:
    """Give items the patients that the images' headers know, if the CSV file names none.

    A patient is named after their first item, not by their key: a split must not depend on the
    salt that keys are made with.
    """
    if any(item.patient is not None for item in items):
        return items
    first: dict[str, str] = {}
    named = []
    for item in items:
        key = frames[item.file][0].patient
        name = first.setdefault(key, item.key) if key is not None else None
        named.append(replace(item, patient=name))
    return named


def sides_of(items: Sequence[Item]) -> tuple[list[str], str]:
    """The split of each item, and how it was decided: ``given``, ``patient`` or ``image``.

    Raises:
        UserError: for a given split that tears a patient apart.
    """
    if items and items[0].split is not None:
        check_given(items)
        return [item.split or "" for item in items], "given"
    split_by = "patient" if any(item.patient is not None for item in items) else "image"
    return make_split(items), split_by


def tested_side(sides: Sequence[str]) -> str:
    """``test``, or ``val`` where there is a val and no test."""
    return "val" if "val" in sides and "test" not in sides else "test"


def _items_from_folders(files: list[Path], roots: list[Path]) -> tuple[list[Item], dict[str, int]]:
    items = []
    for file in files:
        for root in roots:
            below = file.relative_to(root).parts if file.is_relative_to(root) else ()
            folders = _folders(file, below)
            if folders:
                items.append(Item(file, key="/".join(below), label=folders[0]))
                break
    if not items:
        raise UserError(
            f"no image is in a folder below {_shown(roots)}: with '--labels folder' the class is"
            " the name of the first folder below the data path, or inside an archive"
        )
    return items, {}


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
        label = row[label_column]
        if not label:
            left_out["images with an empty label"] += 1
            continue
        if found in items:
            raise UserError(
                f"{file}: rows {items[found].row} and {number} are about the same image:"
                " remove one of them"
            )
        patient, split = row.get("patient") or None, row.get("split")
        items[found] = Item(found, row["path"], label, patient, split, number)
    if left_out["rows that match no image"] == len(rows) > 0:
        raise UserError(
            f"{file}: no path matches an image (a path there: '{unmatched}', an image here:"
            f" '{images[0]}'): paths must be relative to the CSV file's folder or to --data"
        )
    return list(items.values()), left_out


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
            f"no such file of labels: {file} (give a CSV file, or 'folder')"
            + nearest(str(file), ["folder"])
        )
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:  # Excel writes a BOM
            reader = csv.DictReader(stream, restval="")
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            for needed in ("path", label_column):
                if needed not in columns:
                    raise UserError(
                        f"{file} has no column '{needed}'{nearest(needed, columns)}"
                        f" (its columns: {', '.join(columns) or 'none'})"
                    )
            return [
                (number, {name: (row[name] or "").strip() for name in columns})
                for number, row in enumerate(reader, start=2)
            ]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error


def _find(path: str, bases: list[Path], image_at: dict[str, Path]) -> Path | None:
    for base in bases:
        image = image_at.get(os.path.realpath(base / path))
        if image is not None:
            return image
    return image_at.get(f"{_INSIDE}{posixpath.normpath(path)}")


def _warn_of_missing(left_out: dict[str, int], matched: int) -> list[str]:
    missing = left_out["rows that match no image"]
    if not missing:
        return []
    return [f"{missing} of {missing + matched} labelled paths match no image and are left out"]


def warn_of_unknown_patients(items: Sequence[Item], split_by: str) -> list[str]:
    """A sentence for the user where patients are not known, else none."""
    unknown = sum(item.patient is None for item in items)
    if not unknown:
        return []
    whose = "" if unknown == len(items) else f" of {unknown} of {len(items)} images"
    how = "the given split cannot be checked" if split_by == "given" else "these are split by image"
    return [
        f"the patients{whose} are not known, so {how}: images of one patient may be on both sides,"
        " which flatters every number here"
    ]


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
