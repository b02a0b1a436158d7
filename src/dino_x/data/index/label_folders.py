"""Classes of files from the names of folders, and splits where folders are called after them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_x.data.index.splits import NAMES_OF_SPLITS, Item
from dino_x.data.storage.member import Member
from dino_x.errors import UserError

_FOLD = re.compile(r"(k?fold|cv|split|part)s?[\W_]*\d+", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a labelled file lies.

    Attributes:
        file: its path.
        key: its path below the data path.
        root: the data path.
        folders: that it lies in below the data path, one or more.
    """

    file: Path
    key: str
    root: Path
    folders: tuple[str, ...]


def items_from_folders(files: list[Path], roots: list[Path]) -> tuple[list[Item], dict[str, int]]:
    """The files that lie in a folder below a data path, with its name as their class.

    Folders that are called after splits, such as train and test, give the split: the data paths
    themselves, the first folders below them, or the folders inside those of the classes.

    Raises: UserError if there is no such folder, or if it cannot be told what the folders are.
    """
    places = places_of(files, roots)
    if not places:
        raise UserError(
            f"no image is in a folder below {_shown(roots)}: with '--labels folder' the class is"
            " the name of the first folder below the data path, or inside an archive"
        )
    if _are_splits([place.root.name for place in places]):
        return [_item(place, place.folders[0], place.root.name) for place in places], {}
    if _first_are_splits(places, roots):
        return [_item(place, place.folders[1], place.folders[0]) for place in places], {}
    _refuse_what_is_no_class(places, roots)
    second = [place.folders[1] if len(place.folders) > 1 else "" for place in places]
    if _are_splits(second):
        return [_item(place, place.folders[0], place.folders[1]) for place in places], {}
    return [Item(place.file, key=place.key, label=place.folders[0]) for place in places], {}


def places_of(files: Sequence[Path], roots: Sequence[Path]) -> list[Place]:
    """The files that lie in a folder below a data path; of the first such path that there is."""
    found = []
    for file in files:
        for root in roots:
            below = file.relative_to(root).parts if file.is_relative_to(root) else ()
            folders = _folders(file, below)
            if folders:
                found.append(Place(file, "/".join(below), root, folders))
                break
    return found


def split_called(name: str) -> str | None:
    """The split that a name has as a word; None if it has none, or several.

    >>> split_called("Training_set"), split_called("normal")
    ('train', None)
    """
    words = re.split(r"[^a-z]+", name.lower())
    found = {NAMES_OF_SPLITS[word] for word in words if word in NAMES_OF_SPLITS}
    return found.pop() if len(found) == 1 else None


def _item(place: Place, label: str, split: str) -> Item:
    return Item(place.file, place.key, label, split=split_called(split))


def _are_splits(names: Sequence[str]) -> bool:
    """Whether all names are called after splits, and after two of them or more."""
    found = {split_called(name) for name in set(names)}
    return None not in found and len(found) > 1


def _first_are_splits(places: Sequence[Place], roots: Sequence[Path]) -> bool:
    """Whether the first folders are splits, such as train and test, with classes below them.

    Raises: UserError where that cannot be told.
    """
    first = sorted({place.folders[0] for place in places})
    splits = [name for name in first if name.lower() in NAMES_OF_SPLITS]
    if not _are_splits(first):
        if len(splits) < 2:
            return False
        other = next(name for name in first if name not in splits)
        raise UserError(
            f"the folders below {_shown(roots)} are splits ({', '.join(splits)}) and others, such"
            f" as '{other}': name the folder of one kind with --data, or give a CSV file of labels"
        )
    if any(len(place.folders) < 2 for place in places):
        raise UserError(
            f"the folders below {_shown(roots)} are splits ({', '.join(first)}), but some of their"
            " images are in no folder of a class: put them into one, or give a CSV file of labels"
        )
    return True


def _refuse_what_is_no_class(places: Sequence[Place], roots: Sequence[Path]) -> None:
    """Refuse folders that are folds, and one folder around those of the classes."""
    first = {place.folders[0] for place in places}
    if len(first) > 1 and all(_FOLD.fullmatch(name) for name in first):
        raise UserError(
            f"the folders below {_shown(roots)} are called after folds"
            f" ({', '.join(sorted(first)[:3])}, ...), which are no classes: give a CSV file of"
            " labels with the columns path, label and split, one for each fold that is tested"
        )
    below = {place.folders[1] for place in places if len(place.folders) > 1}
    if len(first) == 1 and len(below) > 1:
        name = next(iter(first))
        raise UserError(
            f"all images are in the one folder '{name}' below {_shown(roots)}, which would be their"
            f" only class: name that folder, {places[0].root / name}, with --data"
        )


def _folders(file: Path, below: tuple[str, ...]) -> tuple[str, ...]:
    """The folders that a file lies in below a data path; an archive does not count as a folder."""
    if isinstance(file, Member) and below:
        archive = len(below) - 1 - file.name_inside.count("/") - 1
        return (*below[:archive], *below[archive + 1 : -1])
    return below[:-1]


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
