"""A part of an array that lies in a file, read without mapping the file.

A file that is cut off while it is mapped ends the process with a bus error; one that is cut off
while it is read is a reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino_x.data.image import Unreadable

# Runs of values that begin less than this many bytes apart are read together with what lies
# between them: a call of the system costs as much as copying a few KB.
_NEAR = 16 * 2**10
_BLOCK = 2**20

CUT_OFF = "truncated: the file ends before its last value"


def read_part(
    path: Path,
    dtype: np.dtype,
    offset: int,
    shape: Sequence[int],
    where: Sequence[int | None],
    order: str = "C",
) -> np.ndarray:
    """Read some values of an array that lies in a file.

    Args:
        path: a file, or a member of an archive.
        dtype: the type of a value, in the file's byte order.
        offset: where the array begins in the file, in bytes.
        shape: the lengths of the array's axes.
        where: for each axis a place on it, or None for all of it.
        order: "C" if the last axis is contiguous in the file, "F" if the first is.

    Returns: the values, with the axes that `where` leaves, in memory of their own.

    Raises: Unreadable if the file ends before them; OSError.
    """
    if order == "F":
        return read_part(path, dtype, offset, shape[::-1], where[::-1]).T
    shape, where = tuple(shape), tuple(where)
    steps = [math.prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape))]
    whole = [axis for axis, place in enumerate(where) if place is None]
    values = np.empty([shape[axis] for axis in whole], dtype)
    run = len(shape)  # the axes from this one on are read as a whole: their values are contiguous
    while run and where[run - 1] is None:
        run -= 1
    outer = [axis for axis in whole if axis < run]
    inner: list[int] = []  # axes along which values are picked from what was read
    block = 0
    while outer and _is_near(steps[outer[-1]], block):
        inner.insert(0, outer.pop())
        block = shape[inner[0]] * steps[inner[0]]
    fixed = sum(place * steps[axis] for axis, place in enumerate(where) if place is not None)
    if inner:
        fixed -= sum(
            place * steps[axis]
            for axis, place in enumerate(where)
            if place is not None and axis > inner[0]
        )
    with path.open("rb", buffering=0) as file:
        for at in np.ndindex(*(shape[axis] for axis in outer)):
            begin = offset + fixed + sum(n * steps[axis] for n, axis in zip(at, outer, strict=True))
            if inner:
                _pick(
                    file,
                    begin,
                    values[(*at, ...)],
                    shape[inner[0] :],
                    where[inner[0] :],
                    steps[inner[0]],
                )
            else:
                _fill(file, begin, values[(*at, ...)])
    return values


def _is_near(step: int, block: int) -> bool:
    """Whether what lies along one more axis is read together.

    Args:
        step: bytes from one place on the axis to the next.
        block: bytes that are read together so far; 0 if no others than those that are wanted.
    """
    return step < _NEAR if not block else step == block < _BLOCK


def _pick(
    file: Any,
    begin: int,
    out: np.ndarray,
    shape: tuple[int, ...],
    where: tuple[int | None, ...],
    step: int,
) -> None:
    """Read contiguous values block by block along their first axis, and keep some of them."""
    rows = max(1, _BLOCK // step)
    index = tuple(slice(None) if place is None else place for place in where[1:])
    block = np.empty((min(rows, shape[0]), *shape[1:]), out.dtype)
    for first in range(0, shape[0], rows):
        block = block[: shape[0] - first]
        _fill(file, begin + first * step, block)
        out[first : first + rows] = block[(slice(None), *index)]


def _fill(file: Any, begin: int, out: np.ndarray) -> None:
    """Read the bytes of contiguous values from one place of a file."""
    file.seek(begin)
    view, done = out.reshape(-1).view(np.uint8).data, 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise Unreadable(CUT_OFF)
        done += got
