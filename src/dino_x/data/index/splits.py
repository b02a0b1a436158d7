"""Splits into reference and tested images: of whole patients, where patients are known."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_x.errors import UserError, nearest

SPLITS = ("train", "val", "test")
TRAIN_SHARE = 0.7


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
    """

    file: Path
    key: str
    label: str
    patient: str | None = None
    split: str | None = None
    row: int = 0


def check_given(items: Sequence[Item]) -> None:
    """Refuse unknown split names and a patient in two splits.

    Raises:
        UserError: the message counts the patients, and names rows instead of patients.
    """
    split_of: dict[str, Item] = {}
    leaking: dict[str, tuple[Item, Item]] = {}
    for item in items:
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


def make_split(items: Sequence[Item], train_share: float = TRAIN_SHARE) -> list[str]:
    """Choose ``train`` or ``test`` for each item: 70% of the patients of every class to train.

    A patient, or a file where the patient is not known, goes to one side as a whole. Patients
    are taken class by class (a patient's class is the most frequent of its labels) in the order
    of a hash of their name, so that the split depends on neither seed, order nor machine, and a
    class of two patients or more is on both sides.
    """
    labels: dict[str, Counter[str]] = {}
    for item in items:
        labels.setdefault(unit(item), Counter())[item.label] += 1
    units_of: dict[str, list[str]] = {}
    for name, counts in labels.items():
        most_frequent = min(counts, key=lambda label: (-counts[label], label))
        units_of.setdefault(most_frequent, []).append(name)
    train: set[str] = set()
    for names in units_of.values():
        names.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        train.update(names[: round(train_share * len(names))])  # 1 of 2, 2 of 3, 7 of 10
    return ["train" if unit(item) in train else "test" for item in items]


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


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
