"""What labels are: one class an image, several labels an image, or numbers.

N images, L labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dino_x.errors import UserError

SEVERAL, NUMBERS = "several", "numbers"
BETWEEN = "|"  # stands between the labels of one image
ALL = "all"  # the one class that images with several labels or numbers are split as
MOST_CLASSES = 20  # more different numbers than this are no classes
MOSTLY = 0.5  # of the labels; if so many are numbers, the others are notes
CLASS, NUMBER = "class", "number"  # what may be said of a column, as in grade:class
YES = {"1", "1.0", "true", "yes"}
NO = {"", "0", "0.0", "false", "no"}


@dataclass(frozen=True)
class Targets:
    """What is to be told of each image, where that is not one class.

    Attributes:
        kind: ``several`` (each label is there or not) or ``numbers``.
        names: of the L labels; of numbers, of the one column.
        values_NL: float64, 0 or 1 for labels.
    """

    kind: str
    names: tuple[str, ...]
    values_NL: np.ndarray

    def keep(self, rows: np.ndarray) -> "Targets":
        """Only the images ``rows``, [N] bool or row numbers."""
        return Targets(self.kind, self.names, self.values_NL[rows])

    def rarest(self) -> list[str]:
        """What images are split by, [N]: the label that fewest images have, of those of each.

        So that a label of few patients is on both sides of a split that is made.
        """
        if self.kind == NUMBERS:
            return [ALL] * len(self.values_NL)
        order_L = np.argsort(self.values_NL.sum(axis=0), kind="stable")
        sorted_NL = self.values_NL[:, order_L]
        first_N = sorted_NL.argmax(axis=1)
        return [
            self.names[order_L[first]] if row[first] else ALL
            for row, first in zip(sorted_NL, first_N.tolist(), strict=True)
        ]

    def counts(self, rows: np.ndarray) -> dict[str, int]:
        """How many of the images ``rows`` have each label; {} for numbers."""
        if self.kind == NUMBERS:
            return {}
        found = self.values_NL[rows].sum(axis=0).astype(int).tolist()
        return dict(zip(self.names, found, strict=True))


def column_and_kind(label_column: str, known: Iterable[str]) -> tuple[str, str | None]:
    """The name of a column, and what the user said that it holds.

    Args:
        label_column: a name, and perhaps ``:class`` or ``:number``.
        known: the columns that there are; one whose name ends so is taken as it is called.

    Returns: the name, and ``class``, ``number`` or None.

    >>> column_and_kind("grade:class", ["path", "grade"])
    ('grade', 'class')
    """
    name, _, said = label_column.rpartition(":")
    if label_column in known or said not in (CLASS, NUMBER) or not name:
        return label_column, None
    return name.strip(), said


def columns_named(label_column: str, known: Iterable[str]) -> list[str]:
    """The columns that hold the labels: one, or several with commas between their names."""
    present = list(known)
    name, _ = column_and_kind(label_column, present)
    if name in present:
        return [name]
    return [part.strip() for part in name.split(",") if part.strip()]


def joined(row: dict[str, str], columns: Sequence[str], where: str) -> str:
    """The label text of a row with a column of 0 and 1 for each label, such as ``|mass|nodule|``.

    Args:
        row: of a table.
        columns: of the labels.
        where: the file and the number of the row, for a message.

    Raises: UserError for a value that is neither 0 nor 1.
    """
    there = []
    for column in columns:
        value = row[column].lower()
        if value not in YES | NO:
            raise UserError(
                f"{where}: the column '{column}' holds '{row[column]}'; of several label columns"
                " each holds 1, or 0 or nothing"
            )
        if value in YES:
            there.append(column)
    return BETWEEN + BETWEEN.join(there) + BETWEEN * bool(there)


def targets_of(labels: Sequence[str], column: str) -> Targets | None:
    """What the labels of images are; None if they are classes.

    Labels are several an image if ``|`` is in one of them, and numbers if all are numbers and more
    than 20 of them differ. ``column:class`` and ``column:number`` say it.

    Args:
        labels: [N] texts.
        column: what they are called, and perhaps what they hold, see ``column_and_kind``.

    Raises: UserError if many are numbers and some are not.
    """
    name, said = column_and_kind(column, ())
    if said == CLASS:
        return None
    if said is None and any(BETWEEN in label for label in labels):
        return _several(labels)
    values = [_number(label) for label in labels]
    numbers = [value for value in values if value is not None]
    few = len(set(numbers)) <= MOST_CLASSES or len(numbers) < MOSTLY * len(labels)
    if said is None and few:
        return None
    if len(numbers) < len(labels):
        odd = labels[values.index(None)]
        raise UserError(
            f"the column '{name}' holds {len(set(numbers)):,} different numbers, and"
            f" {len(labels) - len(numbers)} values such as '{odd}' that are none: leave these"
            f" empty, or say '{name}:class' if the numbers are names of classes"
        )
    return Targets(NUMBERS, (name,), np.array(numbers, dtype=np.float64)[:, None])


def _several(labels: Sequence[str]) -> Targets:
    sets = [{part.strip() for part in label.split(BETWEEN)} - {""} for label in labels]
    names = tuple(sorted(set().union(*sets)))
    values = [[float(name in one) for name in names] for one in sets]
    return Targets(SEVERAL, names, np.array(values, dtype=np.float64).reshape(len(labels), -1))


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None
