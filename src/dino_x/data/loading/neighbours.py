"""2.5D: a slice with the one before and the one after it, as the three channels of an image.

Neighbours are found within a series by position along its normal, never by file name or order. At
the ends of a volume the last slice repeats. An image that is not in a stack of slices (a film, or a
series without positions) repeats itself.

A volume whose slices are not evenly spaced is refused: some neighbours would be 1 mm away and
others 10 mm, and a gap often means that a slice is missing. It can be used in 2D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dino_x.data.image import Image, ImageRef, Unreadable
from dino_x.data.index.index import Index, Skipped
from dino_x.data.preparation import to_grey
from dino_x.data.readers import registry
from dino_x.errors import UserError

# Gaps between slices may differ from their median by this share: headers round positions.
SPACING_TOLERANCE = 0.05

UNEVEN = "2.5D needs slices that are evenly spaced; data.slices=1 uses this volume in 2D"
UNPLACED = "2.5D needs the position of every slice; data.slices=1 uses this volume in 2D"
UNLIKE = "2.5D needs slices of one size; data.slices=1 uses this volume in 2D"


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of n images.

    Attributes:
        triples: int64 [n, 3], the rows before, of, and after each image.
        refused: the reason, by row, for images of volumes that cannot be used in 2.5D.
    """

    triples: np.ndarray
    refused: dict[int, str]


def neighbours(rows: Sequence[ImageRef]) -> Neighbours:
    """Find the slices next to each image, by `series` and `position_mm`.

    A volume is refused if only some of its slices have a position, if two are at one place, if a
    gap differs from the median gap by more than `SPACING_TOLERANCE` of it, or if its slices differ
    in size.
    """
    triples = np.repeat(np.arange(len(rows))[:, None], 3, axis=1)
    refused: dict[int, str] = {}
    series: dict[str, list[int]] = {}
    for row, ref in enumerate(rows):
        if ref.series is not None:
            series.setdefault(ref.series, []).append(row)
    for members in series.values():
        placed = [rows[row].position_mm is not None for row in members]
        if len(members) == 1 or not any(placed):
            continue
        reason = _unusable([rows[row] for row in members])
        if reason is not None:
            refused |= dict.fromkeys(members, reason)
            continue
        order = np.array(sorted(members, key=lambda row: rows[row].position_mm or 0.0))
        triples[order[1:], 0] = order[:-1]
        triples[order[:-1], 2] = order[1:]
    return Neighbours(triples, refused)


def _unusable(slices: Sequence[ImageRef]) -> str | None:
    """The reason why a volume cannot be used in 2.5D, or None if it can."""
    if any(ref.position_mm is None for ref in slices):
        return UNPLACED
    gaps = np.diff(np.sort(np.array([ref.position_mm for ref in slices], dtype=np.float64)))
    usual = float(np.median(gaps))
    if not (usual > 0 and (np.abs(gaps - usual) <= SPACING_TOLERANCE * usual).all()):
        return UNEVEN
    if len({(ref.height, ref.width) for ref in slices}) > 1:
        return UNLIKE
    return None


def refuse_uneven(index: Index) -> int:
    """Take volumes that cannot be used in 2.5D out of an index, and list them as skipped.

    Returns: the number of images taken out.

    Raises: UserError if nothing is left.
    """
    refused = neighbours(index.rows).refused
    if refused and len(refused) == len(index):
        row, reason = next(iter(refused.items()))
        raise UserError(f"no image is left to train on; {index.rows[row].path}: {reason}")
    listed = dict.fromkeys(Skipped(index.rows[row].path, why) for row, why in refused.items())
    index.skipped = sorted([*index.skipped, *listed], key=lambda skip: skip.path)
    index.rows = [ref for row, ref in enumerate(index.rows) if row not in refused]
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
