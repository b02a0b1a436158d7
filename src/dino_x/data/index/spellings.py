"""Names that differ in how they are written alone: patients, who are then one, and classes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dino_x.data.index.splits import Item


def plain_name(name: str) -> str:
    """A name without what tables write in two ways: capitals, spaces, leading zeros, a final .0.

    >>> plain_name("007 "), plain_name("7.0"), plain_name("Pat_07") == plain_name("PAT 7")
    ('7', '7', True)
    """
    text = re.sub(r"[\s_-]+", " ", name.strip().casefold())
    text = re.sub(r"(?<=[a-z]) (?=\d)|(?<=\d) (?=[a-z])", "", text)
    text = re.sub(r"(?<!\d)(\d+)\.0+(?!\d)", r"\1", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)


def spelled_alike(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that differ in how they are written alone, by what they have in common."""
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(plain_name(name), set()).add(name)
    return {name: sorted(of) for name, of in found.items() if len(of) > 1}


def with_one_spelling(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """Items whose patients have one name each, where a split is made from them.

    A split that is given stays as it is, so that nobody's split is refused for a likeness of names.

    Returns: the items, and sentences for the user. Neither names a patient.
    """
    alike = spelled_alike({item.patient for item in items if item.patient is not None})
    if not alike:
        return list(items), []
    written = f"{len(alike):,} names of patients are written in two ways or more (capitals, spaces,"
    if all(item.split is None for item in items):
        first = {name: names[0] for names in alike.values() for name in names}
        one = [replace(item, patient=first.get(item.patient or "", item.patient)) for item in items]
        return one, [f"{written} leading zeros, .0): each is taken for one patient"]
    splits: dict[str, set[str]] = {}
    for item in items:
        if item.patient is not None and item.split is not None:
            splits.setdefault(plain_name(item.patient), set()).add(item.split)
    torn = sum(len(splits.get(name, ())) > 1 for name in alike)
    if not torn:
        return list(items), []
    return list(items), [
        f"{written} leading zeros, .0), of which {torn:,} are in more than one of the given splits:"
        " if they are the same patients, that flatters every number here"
    ]


def warn_of_classes(labels: Iterable[str]) -> list[str]:
    """A sentence for the user where classes differ in capitals or spaces alone."""
    found: dict[str, set[str]] = {}
    for label in labels:
        found.setdefault(" ".join(label.casefold().split()), set()).add(label)
    pairs = [sorted(of) for of in found.values() if len(of) > 1]
    if not pairs:
        return []
    shown = " and ".join(f"'{name}'" for name in pairs[0])
    more = f", and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    return [
        f"classes that differ in capitals or spaces alone are classes of their own: {shown}{more};"
        " write them alike if they are one"
    ]
