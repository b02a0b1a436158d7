"""Canvases: what is kept of an image, so that it is decoded once and every crop is quick.

A canvas is the image in [0, 1], antialiased to a square of side S whatever its proportions, in
uint16. Squares of one size stack into batches on the device; the true proportions are kept beside
them, so that a crop can be drawn in the image's own geometry.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow

from dino_x.data.image import Image
from dino_x.data.index import Index
from dino_x.views.windowing import apply_window

# Grey of a colour: ITU-R BT.601, as Pillow and JPEG have it.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_WHITE = 65535


@dataclass(frozen=True)
class Canvas:
    """One image, ready for crops.

    Attributes:
        pixels: uint16 [C, S, S]; 65535 is the upper end of the image's window.
        aspect: height / width of the image itself.
    """

    pixels: np.ndarray
    aspect: float


def make_canvas(image: Image, side: int, channels: int) -> Canvas:
    """Window an image, give it `channels` channels and resize it to a square.

    Args:
        image: in physical units.
        side: S, in pixels.
        channels: 1 (colour becomes luma) or 3 (grey is repeated).

    Raises: ValueError for another number of channels.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; known are 1 and 3")
    unit = apply_window(image.pixels, image.window)
    if channels == 1 and len(unit) == 3:
        unit = np.tensordot(LUMA, unit, axes=1)[None]
    squares = np.stack([_resized(plane, side) for plane in unit])
    pixels = np.rint(np.clip(squares, 0, 1) * _WHITE).astype(np.uint16)
    if len(pixels) < channels:
        pixels = np.repeat(pixels, channels, axis=0)
    height, width = image.pixels.shape[1:]
    return Canvas(pixels, height / width)


def _resized(plane: np.ndarray, side: int) -> np.ndarray:
    """One channel, float32 [H, W], to [S, S].

    Pillow's bilinear filter widens with the reduction, which is what keeps fine structure from
    turning into patterns; it never overshoots, as Lanczos does at the edges of bones and labels.
    """
    if plane.shape == (side, side):
        return plane
    picture = Pillow.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(picture.resize((side, side), Pillow.Resampling.BILINEAR))


def canvas_side(index: Index, views: Sequence[tuple[int, float]]) -> int:
    """The smallest canvas from which no crop has to be enlarged, if the images are large enough.

    Args:
        index: the images.
        views: (crop size in pixels, smallest share of the image's area) of every kind of crop.

    Returns: S, a multiple of 16, at least the largest crop size.
    """
    largest_crop = max(size for size, _ in views)
    needed = max(math.ceil(size / math.sqrt(share)) for size, share in views)
    return 16 * math.ceil(max(min(index.largest_side, needed), largest_crop) / 16)


class CanvasCache:
    """Canvases by row number, up to a limit in bytes; safe to use from several threads.

    It fills up and stays. Every epoch visits every image once in a new order, so the one used
    longest ago is the one most likely to come next: dropping it (LRU) would hit less often than
    keeping whatever came first, which hits in proportion to its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._canvases: dict[int, Canvas] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._canvases)

    def get(self, row: int) -> Canvas | None:
        """The canvas of a row, or None if it is not kept."""
        return self._canvases.get(row)

    def put(self, row: int, canvas: Canvas) -> None:
        """Keep a canvas if there is room; do nothing if there is not, or if it is kept already."""
        size = canvas.pixels.nbytes
        with self._lock:
            if row not in self._canvases and self.bytes + size <= self.limit_bytes:
                self._canvases[row] = canvas
                self.bytes += size
