"""Which axis of an array is what, where a file does not say so.

Axes are named by letters, first axis first: H rows, W columns, C channels, and N images, Z slices
and T times, of which each gives an image. ``data.axes`` names them for all files that leave it
open; without it a shape that can be read in two ways is refused, and never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_x.data.image import Unreadable
from dino_x.data.storage.parts import read_part

# A picture whose sides differ by more than this factor is none that anyone means.
_MOST_ASPECT = 4


@dataclass(frozen=True)
class Layout:
    """How the values of an array are images.

    Attributes:
        axes: letters of its axes, first axis first; H and W are among them.
        shape: of the array.
    """

    axes: str
    shape: tuple[int, ...]

    def size(self, letter: str) -> int:
        """The length of an axis; 1 if the array has none of that name."""
        return self.shape[self.axes.index(letter)] if letter in self.axes else 1

    @property
    def stacked(self) -> tuple[int, ...]:
        """The lengths of the axes along which images lie, in the order of the array."""
        pairs = zip(self.axes, self.shape, strict=True)
        return tuple(length for letter, length in pairs if letter not in "HWC")

    @property
    def images(self) -> int:
        """The number of images."""
        return int(np.prod(self.stacked, dtype=np.int64))

    def volume_of(self, image: int) -> int:
        """The number of the volume that an image is a slice of: images that differ in Z alone."""
        letters = [letter for letter in self.axes if letter not in "HWC"]
        if "Z" not in letters or len(letters) == 1:
            return 0
        where = list(np.unravel_index(image, self.stacked))
        lengths = list(self.stacked)
        del where[letters.index("Z")], lengths[letters.index("Z")]
        return int(np.ravel_multi_index(where, lengths))

    def image(self, values: np.ndarray, number: int) -> np.ndarray:
        """One image of an array that is laid out like this, [H, W, C]."""
        where = self._where(number)
        return self._ordered(values[tuple(slice(None) if at is None else at for at in where)])

    def read(
        self, path: Path, dtype: np.dtype, offset: int, fortran: bool, number: int
    ) -> np.ndarray:
        """One image of an array that lies in a file, [H, W, C]; see `parts.read_part`."""
        order = "F" if fortran else "C"
        return self._ordered(read_part(path, dtype, offset, self.shape, self._where(number), order))

    def _where(self, number: int) -> list[int | None]:
        """For each axis the place of an image on it, or None for all of it."""
        places = list(np.unravel_index(number, self.stacked)) if self.stacked else []
        return [None if letter in "HWC" else int(places.pop(0)) for letter in self.axes]

    def _ordered(self, plane: np.ndarray) -> np.ndarray:
        left = [letter for letter in self.axes if letter in "HWC"]
        if "C" not in left:
            left.append("C")
            plane = plane[..., None]
        return plane.transpose([left.index(letter) for letter in "HWC"])


def layout_of(shape: tuple[int, ...], asked: str | None = None) -> Layout:
    """How an array without names of its axes is read.

    Args:
        shape: two to five lengths.
        asked: ``data.axes``; it counts for arrays with as many axes, except those of two.

    Raises: Unreadable for a shape that can be read in two ways, or in none.

    >>> layout_of((20, 96, 96)).axes, layout_of((96, 80, 3)).axes
    ('NHW', 'HWC')
    >>> layout_of((96, 96, 20), "HWN").images
    20
    """
    if len(shape) == 2:
        return Layout("HW", shape)
    if asked is not None and len(asked) == len(shape):
        return Layout(asked, shape)
    if len(shape) == 3:
        return Layout(_three(shape), shape)
    if len(shape) == 4:
        return Layout(_four(shape), shape)
    raise Unreadable(f"an array of {len(shape)} axes; data.axes names them, such as data.axes=NHW")


def _three(shape: tuple[int, ...]) -> str:
    first, middle, last = shape
    if last in (1, 3):
        return "HWC"
    if first == 1:
        return "CHW"
    if first == 3:
        raise _ask(shape, "NHW", "CHW")
    if _is_picture(middle, last) and not _is_picture(first, middle):
        return "NHW"
    if first < min(middle, last) or (middle == last and first != middle):
        return "NHW"
    raise _ask(shape, "NHW", "HWC" if last <= 4 else "HWN")


def _four(shape: tuple[int, ...]) -> str:
    if shape[3] in (1, 3):
        return "NHWC"
    if shape[1] == 1:
        return "NCHW"
    raise _ask(shape, "NZHW", "NCHW")


def _is_picture(height: int, width: int) -> bool:
    return max(height, width) <= _MOST_ASPECT * min(height, width)


def _ask(shape: tuple[int, ...], *readings: str) -> Unreadable:
    """The refusal of a shape that can be read in two ways."""
    ways = " or ".join(f"{_in_words(Layout(axes, shape))} (data.axes={axes})" for axes in readings)
    return Unreadable(f"{' x '.join(map(str, shape))} values can be {ways}: set data.axes")


def _in_words(layout: Layout) -> str:
    images, channels = layout.images, layout.size("C")
    size = f"{layout.size('H')} x {layout.size('W')}"
    text = f"{images} image{'s' * (images != 1)} of {size}"
    return f"{text} with {channels} channels" if channels > 1 else text
