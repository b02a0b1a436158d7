"""2.5D: a slice with the one before and the one after it, as the three channels of an image.

Neighbours are found within a stack (stacks.py) by position along its normal, never by file name or
order. At the ends of a stack the last slice repeats. An image that is not in a stack of slices (a
film, the only slice of its orientation, or a series without positions) repeats itself.

A stack whose slices are not evenly spaced is refused: some neighbours would be 1 mm away and
others 10 mm, and a gap often means that a slice is missing. It can be used in 2D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dino_x.data.image import Image, ImageRef, Unreadable
from dino_x.data.index.listed import Index, Skipped
from dino_x.data.index.rows import Rows, filtered
from dino_x.data.loading.stacks import stacks_of_series, unusable
from dino_x.data.preparation import to_grey
from dino_x.data.readers import registry
from dino_x.errors import UserError


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of n images.

    Attributes:
        triples: int64 [n, 3], the rows before, of, and after each image.
        refused: the reason, by row, for images of stacks that cannot be used in 2.5D.
        alone: rows of images that repeat themselves although their series has other images.
    """

    triples: np.ndarray
    refused: dict[int, str]
    alone: list[int] = field(default_factory=list)


def neighbours(rows: Sequence[ImageRef]) -> Neighbours:
    """Find the slices next to each image, by `series`, stack and `position_mm`.

    A stack is refused if only some of its slices have a position, if two are at one place, if a
    gap differs from the median gap by more than `SPACING_TOLERANCE` of it, if its slices differ in
    size or spacing, or if those of several acquisitions lie between each other.
    """
    if isinstance(rows, Rows):
        rows = list(rows)  # each is looked at several times
    triples = np.repeat(np.arange(len(rows))[:, None], 3, axis=1)
    refused: dict[int, str] = {}
    alone: list[int] = []
    series: dict[str, list[int]] = {}
    for row, ref in enumerate(rows):
        if ref.series is not None:
            series.setdefault(ref.series, []).append(row)
    for members in series.values():
        if all(rows[row].position_mm is None for row in members):
            continue
        for stack in stacks_of_series(rows, members):
            if len(stack) == 1:
                alone += stack if len(members) > 1 else []
                continue
            reason = unusable([rows[row] for row in stack])
            if reason is not None:
                refused |= dict.fromkeys(stack, reason)
                continue
            order = np.array(sorted(stack, key=lambda row: rows[row].position_mm or 0.0))
            triples[order[1:], 0] = order[:-1]
            triples[order[:-1], 2] = order[1:]
    return Neighbours(triples, refused, alone)


def refuse_uneven(index: Index) -> int:
    """Take volumes that cannot be used in 2.5D out of an index, and list them as skipped.

    Returns: the number of images taken out.

    Raises: UserError if nothing is left.
    """
    found = neighbours(index.rows)
    refused = found.refused
    if refused and len(refused) == len(index):
        row, reason = next(iter(refused.items()))
        raise UserError(f"no image is left to train on; {index.rows[row].path}: {reason}")
    listed = dict.fromkeys(Skipped(index.rows[row].path, why) for row, why in refused.items())
    index.skipped = sorted([*index.skipped, *listed], key=lambda skip: skip.path)
    if found.alone:
        example = index.rows[found.alone[0]].path
        index.notes.append(
            f"{len(found.alone):,} images are used in 2D (in all three channels): their series have"
            f" no other image of the same kind and orientation, such as {example}"
        )
    if refused:
        wanted = np.ones(len(index), dtype=bool)
        wanted[list(refused)] = False
        index.rows = filtered(index.rows, wanted)
    return len(refused)


def read_slices(refs: Sequence[ImageRef]) -> Image:
    """A slice and its neighbours as one image of three channels, each slice grey.

    Args:
        refs: the slice before, the slice, and the slice after; a repeated one is read once.

    Returns: pixels [3, H, W] with the window and modality of the middle slice, so that a value
        means the same in all three.

    Raises:
        Unreadable: if any of them cannot be decoded or is not as large as the header said.
    """
    read = {ref: registry.read(ref) for ref in dict.fromkeys((refs[1], *refs))}
    middle = read[refs[1]]
    planes = [to_grey(read[ref].pixels)[0] for ref in refs]
    if any(plane.shape != planes[1].shape for plane in planes):
        raise Unreadable("a neighbouring slice has another size than its header says")
    spacing = middle.spacing_mm or refs[1].spacing_mm
    return replace(middle, pixels=np.stack(planes), spacing_mm=spacing)
