"""Masks by their place: label maps that lie beside the images that they were drawn on.

Public data sets have a few layouts, and all of these are known here:

- a folder called ``labels``, ``labelsTr``, ``masks``, ``segmentations``, ``Ground Truth`` or the
  like, with files of the same names as images that lie elsewhere below the same parent; or beside
  the images of a case, whatever the names of its files (``s1/ct.nii.gz``, ``s1/segmentations/*``);
- a file whose name ends in ``_mask``, ``-seg`` or the like beside the image that it begins as, or
  that is called ``segmentation`` beside another one, in several folders;
- ``segmentation-7`` beside ``volume-7``, ``label0007`` beside ``img0007``;
- masks of BIDS (``sub-1_..._mask``, ``_dseg``) where there are images of ``sub-1``.

Without such an image nothing is taken for a mask, as folders may be classes (``mask``,
``no_mask``): what is only called one is remarked on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePath

from dino_x.data.image import ImageRef, remarks_in
from dino_x.data.index.headers import Record

KIND = "mask"
UNSURE = "called a mask or label, and no image of its name is known: taken as an image"

_Path = tuple[str, ...]  # the parts of a path
_Key = tuple[str, _Path, str]  # what it is, a folder, and a name

_NOUN = r"(masks?|msks?|seg|segs|segmentations?|labels?|label_?maps?|gts?|ground_?truths?|dseg)"
_FOLDER = re.compile(
    rf"(?!(no|non|not|with|without)_)([^_]+_)*?({_NOUN}|annotations?|manual)"
    r"_?(tr|ts|va|train(ing)?|test(ing)?|val(idation)?)?_?\d*"
)
_TOLD_APART = re.compile(r"(no|non|not|with|without)_?(masks?|labels?|seg.*)")
_ENDING = re.compile(rf"_({_NOUN}|probseg)(_?\d+)?$|_manual_?\d*$")
_WHOLE_NAME = re.compile(rf"{_NOUN}|.*_(masks?|msks?|seg|segmentations?|dseg|label_?maps?)")
_NUMBERED = re.compile(rf"({_NOUN}|annotation|[a-z]+?)_?(\d.*)")
_OF_NO_IMAGE = re.compile(r"mask|label|seg|annot|ground_?truth|(^|_)(gt|manual)", re.I)
_CHANNEL = re.compile(r"_\d{4}$")  # nnU-Net numbers the sequences of an image
_SEPARATORS = re.compile(r"[ _.\-]+")


def mark_masks(records: Sequence[Record]) -> list[Record]:
    """Name the images that are masks by their place, see `image.KINDS`; the others stay.

    Args:
        records: all files, whose images may have been named before, from fewer files.
    """
    plain = [_named(record, None, False) if _was_named(record) else record for record in records]
    rows = [row for row, record in enumerate(plain) if record.refs]
    masks, unsure = _masks_and_unsure([plain[row].path for row in rows])
    for place in masks | unsure:
        row = rows[place]
        plain[row] = _named(plain[row], KIND if place in masks else None, place in unsure)
    return plain


def masks_among(paths: Sequence[PurePath]) -> set[int]:
    """The places of those paths that are masks of others among them."""
    return _masks_and_unsure(paths)[0]


def _masks_and_unsure(paths: Sequence[PurePath]) -> tuple[set[int], set[int]]:
    """The places of paths that are masks of others, and of those that are only called masks."""
    parts = [PurePath(str(path)).parts for path in paths]
    above = _folders_in_common(parts)
    parts = [path[above:] for path in parts]
    classes = {path[:at] for path in parts for at in _told_apart(path)}
    suspects = {place for place, path in enumerate(parts) if _may_be_mask(path, classes)}
    repeated = _names_of_several_folders(parts[place] for place in suspects)
    wanted = {key for place in suspects for key in _keys_of_mask(parts[place], classes, repeated)}
    kinds = {key[0] for key in wanted}
    present: set[_Key] = set()
    for place, path in enumerate(parts):
        if suspects and place not in suspects:
            present.update(wanted.intersection(_keys_of_image(path, kinds)))
    masks = {
        place
        for place in suspects
        if any(key in present for key in _keys_of_mask(parts[place], classes, repeated))
    }
    return masks, suspects - masks


def _folders_in_common(parts: Sequence[_Path]) -> int:
    """How many folders all paths begin with: their names tell nothing apart."""
    if not parts:
        return 0
    first, last = min(parts)[:-1], max(parts)[:-1]
    common = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        common += 1
    return common


def _names_of_several_folders(paths: Iterable[_Path]) -> set[str]:
    """Names such as ``segmentation`` that come in more than one folder, as cases have them."""
    folders: dict[str, set[_Path]] = {}
    for path in paths:
        name = _words(_stem(path))
        if _WHOLE_NAME.fullmatch(name):
            folders.setdefault(name, set()).add(path[:-1])
    return {name for name, found in folders.items() if len(found) > 1}


def _was_named(record: Record) -> bool:
    return any(ref.kind == KIND or UNSURE in (ref.remark or "") for ref in record.refs)


def _named(record: Record, kind: str | None, unsure: bool) -> Record:
    return replace(record, refs=tuple(_named_ref(ref, kind, unsure) for ref in record.refs))


def _named_ref(ref: ImageRef, kind: str | None, unsure: bool) -> ImageRef:
    if ref.kind not in (None, KIND):
        return ref
    remarks = [one for one in remarks_in(ref.remark) if one != UNSURE]
    if unsure:
        remarks.append(UNSURE)
    return replace(ref, kind=kind, remark="; ".join(remarks) or None)


@lru_cache(maxsize=1 << 14)  # files of one folder come one after another
def _words(name: str) -> str:
    """A name in small letters, with ``_`` between its words.

    >>> _words("GroundTruth"), _words("labelsTr"), _words("BraTS-GLI-00-seg")
    ('ground_truth', 'labels_tr', 'bra_ts_gli_00_seg')
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return _SEPARATORS.sub("_", apart).strip("_").lower()


def _told_apart(path: _Path) -> Iterator[int]:
    """The depths of folders that are a class without masks, such as ``no_mask``."""
    for at, folder in enumerate(path[:-1]):
        if _tells_apart(folder):
            yield at


def _mask_folders(path: _Path, classes: set[_Path]) -> Iterator[int]:
    """The depths of folders that are called after masks."""
    for at, folder in enumerate(path[:-1]):
        if _is_of_masks(folder) and path[:at] not in classes:
            yield at


@lru_cache(maxsize=1 << 14)
def _tells_apart(folder: str) -> bool:
    return bool(_TOLD_APART.fullmatch(_words(folder)))


@lru_cache(maxsize=1 << 14)
def _is_of_masks(folder: str) -> bool:
    return bool(_FOLDER.fullmatch(_words(folder)))


@lru_cache(maxsize=1 << 14)
def _is_of_no_image(folder: str) -> bool:
    return bool(_OF_NO_IMAGE.search(_words(folder)))


def _may_be_mask(path: _Path, classes: set[_Path]) -> bool:
    name = _words(_stem(path))
    if _ENDING.search(name) or _WHOLE_NAME.fullmatch(name) or _number_of_mask(name):
        return True
    return next(_mask_folders(path, classes), None) is not None


def _number_of_mask(name: str) -> str | None:
    """The number of ``segmentation_7`` or ``label0007``; None for another name."""
    found = _NUMBERED.fullmatch(name)
    return found[3] if found and re.fullmatch(rf"{_NOUN}|annotation", found[1]) else None


def _stem(path: _Path) -> str:
    """The name of a file without its endings, such as ``.nii.gz``."""
    name = path[-1]
    for ending in (".gz", ".nii", ".nrrd"):
        name = name.removesuffix(ending)
    return name if name != path[-1] else PurePath(name).stem


def _keys_of_mask(path: _Path, classes: set[_Path], repeated: set[str]) -> Iterator[_Key]:
    """What an image that belongs to a mask has as one of its keys."""
    name, folder = _words(_stem(path)), path[:-1]
    bare = _ENDING.sub("", name)
    number = _number_of_mask(name)
    if bare != name:
        yield "begins", folder, bare
        pieces = bare.split("_")
        for count in range(1, len(pieces)):
            yield "is", folder, "_".join(pieces[:count])
        if name.startswith("sub_"):
            yield "subject", (), pieces[1] if len(pieces) > 1 else ""
    if name in repeated:
        yield "beside", folder, ""
    if number:
        yield "number", folder, number
    for at in _mask_folders(path, classes):
        for one in {name, bare}:
            yield "below", path[:at], one
        yield "beside", path[:at], ""
        yield "case", path[:at], ""
        if number:
            yield "number below", path[:at], number


def _keys_of_image(path: _Path, kinds: set[str]) -> Iterator[_Key]:
    """The keys of an image that are of some kinds."""
    name, folder = _words(_stem(path)), path[:-1]
    yield "beside", folder, ""
    yield "is", folder, name
    pieces = name.split("_")
    if "begins" in kinds:
        for count in range(1, len(pieces) + 1):
            yield "begins", folder, "_".join(pieces[:count])
    if "subject" in kinds and pieces[0] == "sub" and len(pieces) > 1:
        yield "subject", (), pieces[1]
    numbered = _NUMBERED.fullmatch(name) if kinds & {"number", "number below"} else None
    if numbered:
        yield "number", folder, numbered[3]
    if "below" in kinds:
        yield from _keys_below(path, name, numbered[3] if numbered else None)


def _keys_below(path: _Path, name: str, number: str | None) -> Iterator[_Key]:
    """The keys of an image by the folders that it lies below."""
    without_channel = _CHANNEL.sub("", name)
    for at in range(len(path) - 2, -1, -1):
        if _is_of_no_image(path[at]):
            return
        yield "below", path[:at], name
        if without_channel != name:
            yield "below", path[:at], without_channel
        if number:
            yield "number below", path[:at], number
        if at and _words(path[at - 1]) == name:
            yield "case", path[:at], ""
