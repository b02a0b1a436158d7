"""Masks by their place: label maps that lie beside the images that they were drawn on.

Two layouts are common. A folder called ``labels``, ``labelsTr``, ``masks``, ``segmentations`` or
``gt`` lies beside one of images, with files of the same names; or the name of a mask is that of its
image and ``_mask``, ``_seg`` or ``_label``. Without such an image nothing is taken for a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

from dino_x.data.index.headers import Record

_FOLDER = re.compile(
    r"(labels?|masks?|seg(mentation)?s?|annotations?|gts?|ground[_-]?truths?|label[_-]?maps?)"
    r"[_-]?(tr|ts|va|train(ing)?|test(ing)?|val(idation)?)?\d*",
    re.IGNORECASE,
)
_WORD = re.compile(r"mask|label|seg|annot", re.IGNORECASE)
_ENDING = re.compile(r"[_-](masks?|seg(mentation)?|labels?|gt|label[_-]?map)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net numbers the sequences of an image

KIND = "mask"


def mark_masks(records: Sequence[Record]) -> list[Record]:
    """Name the images that are masks by their place, see `image.KINDS`; the others stay.

    Args:
        records: all files, whose images may have been named before, from fewer files.
    """
    plain = [_named(record, None) if _was_mask(record) else record for record in records]
    rows = [row for row, record in enumerate(plain) if record.refs]
    for place in masks_among([plain[row].path for row in rows]):
        plain[rows[place]] = _named(plain[rows[place]], KIND)
    return plain


def masks_among(paths: Sequence[PurePath]) -> set[int]:
    """The places of those paths that are masks of others among them."""
    parts = [PurePath(str(path)).parts for path in paths]
    suspects = {place for place, path in enumerate(parts) if _may_be_mask(path)}
    wanted = {key for place in suspects for key in _keys_of_mask(parts[place])}
    present: set[tuple[str, ...]] = set()
    for place, path in enumerate(parts):
        if suspects and place not in suspects:
            present.update(key for key in _keys_of_image(path) if key in wanted)
    return {
        place for place in suspects if any(key in present for key in _keys_of_mask(parts[place]))
    }


def _was_mask(record: Record) -> bool:
    return any(ref.kind == KIND for ref in record.refs)


def _named(record: Record, kind: str | None) -> Record:
    refs = [replace(r, kind=kind) if r.kind in (None, KIND) else r for r in record.refs]
    return replace(record, refs=tuple(refs))


def _may_be_mask(path: tuple[str, ...]) -> bool:
    return bool(_ENDING.search(_stem(path))) or any(map(_FOLDER.fullmatch, path[:-1]))


def _stem(path: tuple[str, ...]) -> str:
    """The name of a file without its endings, such as ``.nii.gz``."""
    name = path[-1]
    for ending in (".gz", ".nii", ".nrrd"):
        name = name.removesuffix(ending)
    return name if name != path[-1] else PurePath(name).stem


def _keys_of_mask(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What an image that belongs to a mask has as one of its keys."""
    stem = _stem(path)
    bare = _ENDING.sub("", stem)
    if bare != stem:
        yield ("beside", *path[:-1], bare)
    for place, folder in enumerate(path[:-1]):
        if _FOLDER.fullmatch(folder):
            for name in {stem, bare}:
                yield ("folder", *path[:place], "*", *path[place + 1 : -1], name)


def _keys_of_image(path: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    stem = _stem(path)
    names = {stem, _CHANNEL.sub("", stem)}
    pieces = stem.split("_")
    for count in range(1, len(pieces) + 1):
        yield ("beside", *path[:-1], "_".join(pieces[:count]))
    for place, folder in enumerate(path[:-1]):
        if not _WORD.search(folder):
            for name in names:
                yield ("folder", *path[:place], "*", *path[place + 1 : -1], name)
