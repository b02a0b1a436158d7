"""Which images choices are made on: a regularisation, the form of a baseline.

Where there are few images, one split of them chooses by chance. So up to a thousand images are cut
into five folds of whole patients; each is held back once, and the choice is made on all of them.

N images.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from dino_x.data.index.labels import Labelled
from dino_x.data.index.splits import Item, make_split

FIT_SHARE = 0.8  # of the training patients, where one validation set is made of the others
FOLDS = 5
# Images; of more, one split chooses as well, at a fifth of the cost. Several labels are fitted one
# by one, so it is so many images times labels.
MOST_FOLDED = 1000
FEW = 10  # a val with fewer images of a class chooses by chance


@dataclass(frozen=True)
class Fold:
    """Images that candidates are fitted on, and images of other patients that compare them.

    Attributes:
        fit: [N] bool.
        choose: [N] bool.
    """

    fit: np.ndarray
    choose: np.ndarray


@dataclass(frozen=True)
class Validation:
    """The images that choices are made on.

    Attributes:
        folds: one for a val that is given or made; several where images are few; none where there
            is nothing to choose on.
        fitted: [N] bool, what is fitted in the end, with what was chosen.
        how: ``given``, ``patient`` or ``image`` (made by these), or ``none``.
    """

    folds: tuple[Fold, ...]
    fitted: np.ndarray
    how: str


def validation(labelled: Labelled) -> Validation:
    """The given val; folds of patients where images are few; else a fifth of train's patients.

    A val of one class only is no help and counts as none.
    """
    train, val = labelled.is_train, labelled.is_val
    several = labelled.targets is not None or len(set(labelled.labels[val])) > 1
    helps = bool(val.any()) and several
    given = Validation((Fold(train, val),), train | val, "given")
    if helps and _fewest(labelled, val) >= FEW:
        return given
    rows = train | val if helps else train
    how = "patient" if labelled.patients_known else "image"
    labels = 1 if labelled.targets is None else len(labelled.targets.names)
    if rows.sum() * labels <= MOST_FOLDED:
        folds = folds_of(labelled, rows)
        if folds:
            return Validation(folds, rows, how)
    if helps:
        return given
    made = one_split(labelled)
    if made is None:
        return Validation((), train, "none")
    return Validation((made,), train, how)


def _fewest(labelled: Labelled, rows: np.ndarray) -> int:
    """How many images there are of the rarest class of some; of all where there are no classes."""
    counts = [int((labelled.labels[rows] == label).sum()) for label in labelled.classes]
    return min(counts)


def folds_of(labelled: Labelled, rows: np.ndarray) -> tuple[Fold, ...]:
    """Five folds of whole patients, with about the same shares of the classes; fewer of few.

    They depend on neither seed, order nor machine.

    Args:
        labelled: the images.
        rows: [N] bool, those that are cut into folds.

    Returns: none, if a class has too few patients to be on both sides of each fold.
    """
    patients = len(set(labelled.patients[rows].tolist()))
    for count in range(min(FOLDS, patients), 1, -1):
        found = _cut(labelled, rows, count)
        if found and all(_fits_all(labelled, fold) for fold in found):
            return tuple(found)
    return ()


def _fits_all(labelled: Labelled, fold: Fold) -> bool:
    return set(labelled.labels[fold.fit]) == set(labelled.classes)


def _cut(labelled: Labelled, rows: np.ndarray, count: int) -> list[Fold]:
    """So many folds, in the order of the hash of the patients' names."""
    number = np.flatnonzero(rows)
    names = labelled.patients[number].tolist()
    groups = [hashlib.sha256(str(name).encode()).hexdigest() for name in names]
    labels = labelled.labels[number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class of fewer images than folds
        try:
            sides = list(StratifiedGroupKFold(count).split(labels, labels, groups))
        except ValueError:  # all classes have fewer images than folds
            return []
    found = []
    for fit, held in sides:
        fold = Fold(np.zeros_like(rows), np.zeros_like(rows))
        fold.fit[number[fit]], fold.choose[number[held]] = True, True
        found.append(fold)
    return found


def one_split(labelled: Labelled) -> Fold | None:
    """A fifth of the patients of each class of train to choose on; None if they are too few."""
    train = labelled.is_train
    rows = np.flatnonzero(train)
    names = zip(labelled.patients[rows].tolist(), labelled.labels[rows].tolist(), strict=True)
    items = [Item(Path(), key=patient, label=label, patient=patient) for patient, label in names]
    choose = np.zeros(len(train), dtype=bool)
    choose[rows] = np.array(make_split(items, FIT_SHARE)) == "test"
    sides = (choose, train & ~choose)
    if min(len(set(labelled.labels[side])) for side in sides) < len(labelled.classes):
        return None
    return Fold(train & ~choose, choose)
