"""Stacks: the slices of a series that may be neighbours of each other.

A series can hold more than one stack: the three planes of a localizer, the phases of a dynamic
scan, the echoes of an MR sequence, a dose grid beside the CT that it was planned on. Slices are of
one stack if they agree in orientation, modality, kind of image, echo and time. A stack must then be
evenly spaced, in slices of one size and spacing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from dino_x.data.image import ImageRef

# Gaps between slices may differ from their median by this share: headers round positions.
SPACING_TOLERANCE = 0.05

# Directions may differ by this much in each of their six numbers, which is 0.3 degrees.
DIRECTION_TOLERANCE = 0.005

# Slices of one time lie no further apart than this many times their thickness.
_WIDEST_GAP = 2.0

UNEVEN = "2.5D needs slices that are evenly spaced; data.slices=1 uses this volume in 2D"
UNPLACED = "2.5D needs the position of every slice; data.slices=1 uses this volume in 2D"
UNLIKE = "2.5D needs slices of one size and spacing; data.slices=1 uses this volume in 2D"
MIXED = (
    "2.5D needs slices of one time, and here slices of several acquisitions lie between each"
    " other; data.slices=1 uses this volume in 2D"
)


def stacks_of_series(rows: Sequence[ImageRef], members: Sequence[int]) -> list[list[int]]:
    """Divide the images of a series into those that agree in all that makes a stack.

    Args:
        rows: all images.
        members: the rows of one series.

    Returns: the rows of each stack, in the order of `members`.
    """
    alike: dict[Hashable, list[int]] = {}
    for row in members:
        ref = rows[row]
        facts = (ref.stack, ref.modality, ref.kind, ref.sop_class, ref.image_type, ref.axis)
        alike.setdefault(facts, []).append(row)
    stacks: list[list[int]] = []
    for group in alike.values():
        for plane in _by_orientation(rows, group):
            stacks += _by_acquisition(rows, plane)
    return stacks


def unusable(slices: Sequence[ImageRef]) -> str | None:
    """The reason why a stack cannot be used in 2.5D, or None if it can."""
    if any(ref.position_mm is None for ref in slices):
        return UNPLACED
    if len({ref.acquisition for ref in slices}) > 1 and _interleaved(slices):
        return MIXED
    if _gap(slices) is None:
        return UNEVEN
    if len({(ref.height, ref.width, ref.channels) for ref in slices}) > 1:
        return UNLIKE
    if not (_agree([ref.spacing_mm for ref in slices]) and _one_thickness(slices)):
        return UNLIKE
    return None


def _by_orientation(rows: Sequence[ImageRef], members: Sequence[int]) -> list[list[int]]:
    """Groups of the rows whose slices have one orientation, up to rounding."""
    groups: list[tuple[tuple[float, ...] | None, list[int]]] = []
    for row in members:
        found = rows[row].orientation
        for directions, group in groups:
            if directions is found or _same_directions(directions, found):
                group.append(row)
                break
        else:
            groups.append((found, [row]))
    return [group for _, group in groups]


def _same_directions(one: tuple[float, ...] | None, other: tuple[float, ...] | None) -> bool:
    if one is None or other is None:
        return one is other
    return all(abs(a - b) <= DIRECTION_TOLERANCE for a, b in zip(one, other, strict=True))


def _by_acquisition(rows: Sequence[ImageRef], members: list[int]) -> list[list[int]]:
    """The rows of each acquisition, where these are whole stacks that lie at the same places.

    Rotations of a scanner that follow each other are acquisitions, too, and stay together. So do
    slices that were excited at once, with wide gaps between them.
    """
    if any(rows[row].position_mm is None for row in members):
        return [members]
    parts: dict[str | None, list[int]] = {}
    for row in members:
        parts.setdefault(rows[row].acquisition, []).append(row)
    if len(parts) == 1 or not _interleaved([rows[row] for row in members]):
        return [members]
    whole = all(_is_whole([rows[row] for row in part]) for part in parts.values())
    return list(parts.values()) if whole else [members]


def _interleaved(slices: Sequence[ImageRef]) -> bool:
    """Whether slices of different acquisitions lie at one place or between each other."""
    order = sorted(slices, key=lambda ref: ref.position_mm or 0.0)
    finished: set[str | None] = set()
    last = order[0]
    for ref in order[1:]:
        if ref.acquisition != last.acquisition:
            finished.add(last.acquisition)
            if ref.acquisition in finished or ref.position_mm == last.position_mm:
                return True
        last = ref
    return False


def _is_whole(slices: Sequence[ImageRef]) -> bool:
    """Whether slices are a stack by themselves: evenly spaced, without room for others between."""
    gap, thickness = _gap(slices), slices[0].thickness_mm
    return gap is not None and thickness is not None and gap <= _WIDEST_GAP * thickness


def _gap(slices: Sequence[ImageRef]) -> float | None:
    """The distance between neighbours in mm; None if they are not evenly spaced, or only one."""
    if len(slices) < 2:
        return None
    gaps = np.diff(np.sort(np.array([ref.position_mm for ref in slices], dtype=np.float64)))
    usual = float(np.median(gaps))
    even = usual > 0 and bool((np.abs(gaps - usual) <= SPACING_TOLERANCE * usual).all())
    return usual if even else None


def _agree(values: Sequence[tuple[float, float] | None]) -> bool:
    """Whether all sizes of pixels are known and equal up to rounding, or none is known."""
    known = [value for value in dict.fromkeys(values) if value is not None]
    if len(known) < 2 and len(set(values)) == 1:
        return True
    if None in values:
        return False
    low, high = np.min(known, axis=0), np.max(known, axis=0)
    return bool((high <= low * (1 + SPACING_TOLERANCE)).all())


def _one_thickness(slices: Sequence[ImageRef]) -> bool:
    known = {ref.thickness_mm for ref in slices if ref.thickness_mm is not None}
    return not known or max(known) <= min(known) * (1 + SPACING_TOLERANCE)
