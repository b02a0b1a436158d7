"""What labels are: one class an image, several labels an image, or numbers.

N images, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dino_x.errors import UserError

SEVERAL, NUMBERS = "several", "numbers"
BETWEEN = "|"  # stands between the labels of one image
ALL = "all"  # the one class that images with several labels or numbers are split as
MOST_CLASSES = 20  # more different numbers than this are no classes
MOSTLY = 0.9
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

    def counts(self, rows: np.ndarray) -> dict[str, int]:
        """How many of the images ``rows`` have each label; {} for numbers."""
        if self.kind == NUMBERS:
            return {}
        found = self.values_NL[rows].sum(axis=0).astype(int).tolist()
        return dict(zip(self.names, found, strict=True))


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
    than 20 of them differ.

    Args:
        labels: [N] texts.
        column: what they are called.

    Raises: UserError if most are numbers and some are not.
    """
    if any(BETWEEN in label for label in labels):
        return _several(labels)
    values = [_number(label) for label in labels]
    numbers = [value for value in values if value is not None]
    if len(set(numbers)) <= MOST_CLASSES or len(numbers) < MOSTLY * len(labels):
        return None
    if len(numbers) < len(labels):
        odd = labels[values.index(None)]
        raise UserError(
            f"the column '{column}' holds {len(set(numbers)):,} different numbers, and"
            f" {len(labels) - len(numbers)} values such as '{odd}' that are none: leave these"
            " empty, or name a column of one kind"
        )
    return Targets(NUMBERS, (column,), np.array(numbers, dtype=np.float64)[:, None])


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
