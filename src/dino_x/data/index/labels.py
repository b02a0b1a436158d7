"""Labels of images: their classes, and which of them are tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from dino_x.data.identity import key
from dino_x.data.index.content import content_keys
from dino_x.data.index.index import folders_of
from dino_x.data.index.label_kinds import ALL, Targets, targets_of
from dino_x.data.index.label_sources import items_from, patients_from_csv
from dino_x.data.index.spellings import warn_of_classes, with_one_spelling
from dino_x.data.index.splits import (
    Item,
    check_classes,
    check_given,
    check_sides,
    make_split,
    units_with_copies,
    without_lonely,
)
from dino_x.data.readers.registry import ImageRef


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
        made: the side of each labelled file by its path below the data, if the split was made.
        targets: what is to be told of each image where that is not its one class; ``labels`` are
            then all the same.
        units: which images belong to one ``volume`` or ``slide``, a name for each image, [N];
            without the kinds that no image has. Never to be written out.
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
    made: dict[str, str] = field(default_factory=dict)
    targets: Targets | None = None
    units: dict[str, np.ndarray] = field(default_factory=dict)

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
            targets=None if self.targets is None else self.targets.keep(rows),
            units={name: of[rows] for name, of in self.units.items()},
        )
        if kept.targets is not None:
            check_sides(int(kept.is_train.sum()), int(kept.is_test.sum()), self.tested)
            return kept
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
    damaged: Sequence[ImageRef] = (),
    kept: Mapping[str, str] | None = None,
) -> Labelled:
    """Give each image its class and its side.

    Args:
        labels: ``folder`` (the class is the first folder below the data path; folders called
            train, val and test are splits, and the classes are the folders below them), ``column``
            (``label_column`` is beside the images of Parquet files), or a CSV file with the columns
            ``path`` (relative to the CSV file's folder or to a data path), ``label_column``, and,
            if they are known, ``patient`` (or ``group``, or ``slide``) and ``split`` (train, val,
            test).
        refs: the images found below the data paths. All frames of a file share its label.
        data_paths: the folders the images are in.
        label_column: the column that holds the class, several labels such as ``mass|nodule``, or a
            number; or columns of 0 and 1, a label each, with commas between their names.
        with_val: whether to return the images of val, too, see ``Labelled.is_val``.
        damaged: further images there, which cannot be decoded. They have a side like the others,
            so that a split does not depend on what can be read, and are then left out.
        kept: the split that a run made, by the key of an item, see ``splits.make_split``.

    Returns:
        The labelled images. Train is the reference set; test is tested, or val where there is no
        test. Where no split is given, one is made, by patient if patients are known; exact copies
        of a file stay on its side.

    Raises:
        UserError: for labels that cannot be read, that match no image, that hold one class only,
            or a patient in two splits, or a class that is missing on one side.
    """
    frames: dict[Path, list[ImageRef]] = {}
    for ref in chain(refs, damaged):
        frames.setdefault(ref.path, []).append(ref)
    roots = folders_of(data_paths)
    items, left_out = items_from(labels, list(frames), roots, label_column)
    warnings = _warn_of_missing(left_out, len(items))
    items, alike = with_one_spelling(_with_patients_of(items, frames))
    warnings += alike
    targets = targets_of([item.label for item in items], label_column)
    number_of = {item.key: number for number, item in enumerate(items)}
    if targets is not None:
        pairs_of = zip(items, targets.rarest(), strict=True)
        items = [replace(item, label=label) for item, label in pairs_of]
    unnamed = len(frames) - len(items) - left_out.get("images with an empty label", 0)
    left_out["images that the labels do not name"] = unnamed

    keys = content_keys(item.file for item in items)
    if targets is None:
        items, lonely = without_lonely(items, units_with_copies(items, keys))
        left_out["images of a class with one patient"] = sum(lonely.values())
        warnings += warn_of_lonely(lonely) + warn_of_classes(item.label for item in items)
    sides, split_by = sides_of(items, keys, kept)
    unreadable = {ref.path for ref in damaged}
    left_out["images that cannot be decoded"] = sum(item.file in unreadable for item in items)
    pairs = [(i, s) for i, s in zip(items, sides, strict=True) if i.file not in unreadable]
    warnings += warn_of_unknown_patients([item for item, _ in pairs], split_by)
    tested = tested_side([side for _, side in pairs])
    wanted = {"train", tested} | ({"val"} if with_val else set())
    used = [(item, side) for item, side in pairs if side in wanted]
    left_out["images of a split not used"] = len(pairs) - len(used)
    train, test = (
        [item.label for item, side in used if side == wanted] for wanted in ("train", tested)
    )
    if targets is None:
        check_classes(train, test, tested)
    else:
        check_sides(len(train), len(test), tested)
    warnings += warn_of_copies(used, keys, tested)
    rows = [(ref, item, side) for item, side in used for ref in frames[item.file]]
    return Labelled(
        refs=[ref for ref, _, _ in rows],
        labels=np.array([item.label if targets is None else ALL for _, item, _ in rows]),
        is_test=np.array([side == tested for _, _, side in rows]),
        is_val=np.array([side not in ("train", tested) for _, _, side in rows]),
        patients=np.array([item.patient or f"file {item.key}" for _, item, _ in rows]),
        patients_known=all(item.patient is not None for item, _ in used),
        tested=tested,
        split_by=split_by,
        left_out={reason: count for reason, count in left_out.items() if count},
        warnings=warnings,
        made={item.key: side for item, side in pairs} if split_by != "given" else {},
        targets=None
        if targets is None
        else targets.keep(np.array([number_of[item.key] for _, item, _ in rows])),
        units=units_of_images([(ref, item) for ref, item, _ in rows], frames),
    )


def units_of_images(
    rows: Sequence[tuple[ImageRef, Item]], frames: Mapping[Path, Sequence[ImageRef]]
) -> dict[str, np.ndarray]:
    """The volume and the slide of each image; see ``Labelled.units``.

    A volume is what a column ``volume`` of the labels says, else a series of the headers, else a
    file of several images.
    """
    volumes: list[str | None] = []
    for ref, item in rows:
        several = f"file {item.key}" if len(frames[item.file]) > 1 else None
        volumes.append(item.volume or ref.series or several)
    found: dict[str, np.ndarray] = {}
    for name, names in (("volume", volumes), ("slide", [item.slide for _, item in rows])):
        if any(names):
            alone = [of or f"image {number}" for number, of in enumerate(names)]
            found[name] = np.array(alone)
    return found


def label_of(
    labels: str | Path,
    files: list[Path],
    *,
    data_paths: Sequence[str | Path],
    label_column: str = "label",
) -> dict[Path, str]:
    """The class of each file that has one; see ``load_labels`` for arguments and errors."""
    items = items_of(labels, files, data_paths=data_paths, label_column=label_column)
    return {item.file: item.label for item in items}


def items_of(
    labels: str | Path,
    files: list[Path],
    *,
    data_paths: Sequence[str | Path],
    label_column: str = "label",
) -> list[Item]:
    """The files that have a label, with their patient; see ``load_labels``."""
    roots = folders_of(data_paths)
    if not files:
        return []
    items, _ = items_from(labels, files, roots, label_column)
    return items


def keys_of_patients(
    labels: str | Path,
    rows: Sequence[ImageRef],
    data_paths: Sequence[str | Path],
    label_column: str,
) -> dict[Path, str]:
    """Salted keys of the patients that a table of labels names, by file.

    Args:
        labels: the table, or ``folder``, which names none.
        rows: the images; files whose headers name the patient are left out.
        data_paths: the folders the images are in.
        label_column: the column that holds the class.

    Raises: UserError for a file that is no such table.
    """
    files = dict.fromkeys(row.path for row in rows if row.patient is None)
    if str(labels) == "folder" or not files:
        return {}
    found = patients_from_csv(Path(labels), list(files), folders_of(data_paths), label_column)
    keys = ((file, key("patient", patient)) for file, patient in found.items())
    return {file: of for file, of in keys if of is not None}


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


def sides_of(
    items: Sequence[Item],
    keys: Mapping[Path, bytes] | None = None,
    kept: Mapping[str, str] | None = None,
) -> tuple[list[str], str]:
    """The split of each item, and how it was decided: ``given``, ``patient`` or ``image``.

    Args:
        items: the labelled files.
        keys: of their content; exact copies stay on one side of a split that is made.
        kept: the split that a run made, by the key of an item.

    Raises:
        UserError: for a given split that tears a patient apart.
    """
    if any(item.split is not None for item in items):
        check_given(items)
        return [item.split or "" for item in items], "given"
    split_by = "patient" if any(item.patient is not None for item in items) else "image"
    units = units_with_copies(items, keys or {})
    return make_split(items, units=units, kept=kept), split_by


def tested_side(sides: Sequence[str]) -> str:
    """``test``, or ``val`` where there is a val and no test."""
    return "val" if "val" in sides and "test" not in sides else "test"


def _warn_of_missing(left_out: dict[str, int], matched: int) -> list[str]:
    missing = left_out.get("rows that match no image", 0)
    if not missing:
        return []
    return [f"{missing} of {missing + matched} labelled paths match no image and are left out"]


def warn_of_unknown_patients(items: Sequence[Item], split_by: str) -> list[str]:
    """A sentence for the user where patients are not known, else none."""
    unknown = sum(item.patient is None for item in items)
    if not unknown:
        return []
    whose = "" if unknown == len(items) else f" of {unknown} of {len(items)} images"
    how = "the given split cannot be checked" if split_by == "given" else "these are split by file"
    return [
        f"the patients{whose} are not known, so {how}: images of one patient may be on both sides,"
        " which flatters every number here"
    ]


def warn_of_lonely(lonely: Mapping[str, int]) -> list[str]:
    """A sentence for the user where classes are left out that one patient alone has."""
    if not lonely:
        return []
    shown = ", ".join(f"'{label}' ({count})" for label, count in list(lonely.items())[:3])
    more = f" and {len(lonely) - 3} more" if len(lonely) > 3 else ""
    return [
        f"classes of which there is one patient or file cannot be in train and test both, and are"
        f" left out: {shown}{more}"
    ]


def warn_of_copies(
    used: Sequence[tuple[Item, str]], keys: Mapping[Path, bytes], tested: str
) -> list[str]:
    """A sentence for the user where exact copies of tested files are in train."""
    train = {keys[item.file] for item, side in used if side == "train" and item.file in keys}
    files = [item.file for item, side in used if side == tested]
    copies = sum(keys.get(file) in train for file in files)
    if not copies:
        return []
    return [
        f"{copies:,} of {len(files):,} tested files have an exact copy in train, which flatters"
        " every number here: remove the column 'split' to have copies kept together, or the copies"
    ]
