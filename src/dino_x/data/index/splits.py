"""Splits into reference and tested images: of whole patients, where patients are known."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_x.errors import UserError, nearest

SPLITS = ("train", "val", "test")
TRAIN_SHARE = 0.7
NAMES_OF_SPLITS = {  # of folders
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """A file with its label, patient and split.

    Attributes:
        file: its path.
        key: its path relative to the data path, which stays the same when the data are moved.
        label: the name of its class.
        patient: its patient; None where that is not known.
        split: train, val, test, or None where it was not given.
        row: its row in the CSV file, counted from 1 with the header; 0 where there is none.
        volume: its volume, if the CSV file names one.
        slide: its slide, if the CSV file names one.
    """

    file: Path
    key: str
    label: str
    patient: str | None = None
    split: str | None = None
    row: int = 0
    volume: str | None = None
    slide: str | None = None


def check_given(items: Sequence[Item]) -> None:
    """Refuse unknown split names and a patient in two splits.

    Raises:
        UserError: the message counts the patients, and names rows instead of patients.
    """
    split_of: dict[str, Item] = {}
    leaking: dict[str, tuple[Item, Item]] = {}
    for item in items:
        if not item.split:
            row = f"row {item.row}" if item.row else "an image"
            raise UserError(
                f"{row} has no split, and others have one: give it train, val or test, leave its"
                " label empty, or remove all splits to have them made by patient"
            )
        if item.split not in SPLITS:
            raise UserError(
                f"row {item.row} has split '{item.split}', which is none of {', '.join(SPLITS)}"
                + nearest(item.split or "", SPLITS)
            )
        if item.patient is None:
            continue
        first = split_of.setdefault(item.patient, item)
        if first.split != item.split:
            leaking.setdefault(item.patient, (first, item))
    if leaking:
        one, other = next(iter(leaking.values()))
        raise UserError(
            f"{len(leaking)} of {len(split_of)} patients are in more than one split (the patient of"
            f" row {one.row}, {one.split}, is also in row {other.row}, {other.split}): put each"
            " patient into one, or remove the column 'split' to have it made by patient"
        )


def make_split(
    items: Sequence[Item],
    train_share: float = TRAIN_SHARE,
    *,
    units: Sequence[str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> list[str]:
    """Choose ``train`` or ``test`` for each item: 70% of the patients of every class to train.

    A patient, or a file where the patient is not known, goes to one side as a whole. Patients
    are taken class by class (a patient's class is the most frequent of its labels) in the order
    of a hash of their name, so that the split depends on neither seed, order nor machine, and a
    class of two patients or more is on both sides.

    Args:
        items: the labelled files.
        train_share: of the patients of a class.
        units: what stays together, a name for each item; by default ``unit`` of each.
        kept: the sides of an earlier split by the key of an item. They are taken as they are, and
            the rest is split as if it were alone. A patient with items on both sides goes to
            train, so that nothing that was trained on is tested.
    """
    names = list(units) if units is not None else [unit(item) for item in items]
    sides = _kept_sides(items, names, kept or {})
    labels: dict[str, Counter[str]] = {}
    for item, name in zip(items, names, strict=True):
        if name not in sides:
            labels.setdefault(name, Counter())[item.label] += 1
    units_of: dict[str, list[str]] = {}
    for name, counts in labels.items():
        most_frequent = min(counts, key=lambda label: (-counts[label], label))
        units_of.setdefault(most_frequent, []).append(name)
    for of_class in units_of.values():
        of_class.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        train = round(train_share * len(of_class))  # 1 of 2, 2 of 3, 7 of 10
        sides |= dict.fromkeys(of_class[:train], "train") | dict.fromkeys(of_class[train:], "test")
    return [sides[name] for name in names]


def _kept_sides(
    items: Sequence[Item], names: Sequence[str], kept: Mapping[str, str]
) -> dict[str, str]:
    """The sides of the units that an earlier split knows."""
    sides: dict[str, str] = {}
    for item, name in zip(items, names, strict=True):
        side = kept.get(item.key)
        if side is not None and sides.get(name) != "train":
            sides[name] = side
    return sides


def units_with_copies(items: Sequence[Item], keys: Mapping[Path, bytes]) -> list[str]:
    """What stays on one side, a name for each item: patients, and those who share an exact copy.

    Args:
        items: the labelled files.
        keys: of the content of files, see ``content.content_keys``.
    """
    names = [unit(item) for item in items]
    parent = {name: name for name in names}

    def first(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    holder: dict[bytes, str] = {}
    for item, name in zip(items, names, strict=True):
        key = keys.get(item.file)
        if key is None:
            continue
        one, other = sorted((first(name), first(holder.setdefault(key, name))))
        parent[other] = one
    return [first(name) for name in names]


def unit(item: Item) -> str:
    """The unit that stays on one side: the patient, or the file where the patient is not known."""
    return f"patient {item.patient}" if item.patient is not None else f"file {item.key}"


def check_classes(train: Sequence[str], test: Sequence[str], tested: str = "test") -> None:
    """Refuse a single class, and a class that is missing on one side.

    Args:
        train: the label of each reference image.
        test: the label of each tested image.
        tested: the name of the tested side, test or val.

    Raises:
        UserError: the message names the classes.
    """
    classes = sorted({*train, *test})
    if len(classes) < 2:
        found = f"only the class '{classes[0]}'" if classes else "no labelled image"
        raise UserError(f"{found} found: an evaluation needs two classes or more")
    for side, present in (("train", set(train)), (tested, set(test))):
        missing = [label for label in classes if label not in present]
        if missing:
            raise UserError(
                f"no image of {_listed(missing)} in {side}: every class needs a patient in train"
                f" and one in {tested}; an empty label leaves an image out"
            )


def check_sides(train: int, test: int, tested: str = "test") -> None:
    """Refuse a split with no image on one side.

    Raises:
        UserError: naming the side.
    """
    for side, images in (("train", train), (tested, test)):
        if images == 0:
            raise UserError(f"no labelled image is in {side}: images are needed in train and test")


def without_lonely(
    items: Sequence[Item], units: Sequence[str]
) -> tuple[list[Item], dict[str, int]]:
    """The items without those of classes that a single unit has, which cannot be on both sides.

    Nothing is left out where less than two classes would remain, nor of a given split.

    Args:
        items: the labelled files.
        units: what stays together, a name for each item.

    Returns: the other items, and the number of images of each class that is left out.
    """
    units_of: dict[str, set[str]] = {}
    for item, name in zip(items, units, strict=True):
        units_of.setdefault(item.label, set()).add(name)
    lonely = {label for label, names in units_of.items() if len(names) == 1}
    given = any(item.split is not None for item in items)
    if given or not lonely or len(units_of) - len(lonely) < 2:
        return list(items), {}
    left_out = Counter(item.label for item in items if item.label in lonely)
    return [item for item in items if item.label not in lonely], dict(left_out)


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
