"""Canvases: what is kept of an image, so that it is decoded once and every crop is quick.

A canvas is the image in [0, 1], antialiased to a square of side S whatever its proportions, in
uint16. Squares of one size stack into batches on the device. The true proportions are kept beside
the pixels, so that a crop can be drawn in the image's own geometry. store.py keeps canvases on
disk.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dino_x.config.options import WindowOptions
from dino_x.data.image import Image
from dino_x.data.index.listed import Index
from dino_x.data.index.rows import counts_of
from dino_x.data.preparation import to_square
from dino_x.data.windowing import apply_to_channels, canvas_window

_WHITE = 65535


@dataclass(frozen=True)
class CanvasForm:
    """How the canvases of a run are made.

    Attributes:
        side: S, in pixels, see `canvas_side`.
        channels: 1 (colour becomes luma), 3 (grey is repeated), or those of all images.
        slices: 1, or 3 for a slice and its neighbours as channels, see loading/neighbours.py.
        spacing_mm: finer pixels are first resampled to it, where the file says their size.
        windows: which values become 0 and 1, see `windowing.canvas_window`.
    """

    side: int
    channels: int
    slices: int = 1
    spacing_mm: float | None = None
    windows: WindowOptions = field(default_factory=lambda: WindowOptions(ct="fixed"))


@dataclass(frozen=True)
class Canvas:
    """One image, ready for crops.

    Attributes:
        pixels: uint16 [C, S, S]; 65535 is the upper end of the image's window.
        aspect: height / width of the image, in millimetres if the size of a pixel is known.
        size_mm: its height and width in millimetres, if the file says the size of a pixel.
        hounsfield: whether 0 to 65535 is `windowing.CT_RANGE`, with no window applied.
    """

    pixels: np.ndarray
    aspect: float
    size_mm: tuple[float, float] | None = None
    hounsfield: bool = False


def make_canvas(image: Image, form: CanvasForm) -> Canvas:
    """Window an image, give it its channels and resize it to a square.

    Args:
        image: the image, in physical units.
        form: how the canvases of the run are made.

    Raises: Unreadable for an image that cannot have so many channels.
    """
    window, hounsfield = canvas_window(image, form.windows)
    height, width = image.pixels.shape[1:]
    square = to_square(
        apply_to_channels(image.pixels, window),
        form.channels,
        form.side,
        resampled_to=shape_at((height, width), image.spacing_mm, form.spacing_mm),
    )
    pixels = np.rint(square * _WHITE).astype(np.uint16)
    if image.spacing_mm is None:
        return Canvas(pixels, height / width, None, hounsfield)
    size_mm = height * image.spacing_mm[0], width * image.spacing_mm[1]
    aspect = height / width
    if image.spacing_mm[0] != image.spacing_mm[1]:
        aspect = size_mm[0] / size_mm[1]
    return Canvas(pixels, aspect, size_mm, hounsfield)


def shape_at(
    shape: tuple[int, ...], spacing_mm: tuple[float, float] | None, least_mm: float | None
) -> tuple[int, int]:
    """The height and width of an image once pixels finer than `least_mm` are resampled to it.

    Coarser pixels stay as they are: enlarging an image adds nothing to it.
    """
    height, width = shape
    if spacing_mm is None or least_mm is None:
        return height, width
    finer = [min(1.0, spacing / least_mm) for spacing in spacing_mm]
    return max(1, round(height * finer[0])), max(1, round(width * finer[1]))


def to_unit(pixels: np.ndarray, out: np.ndarray) -> None:
    """Write the pixels of canvases into `out`, as float32 in [0, 1]."""
    np.divide(pixels, np.float32(_WHITE), out=out)


@dataclass(frozen=True)
class Crop:
    """One kind of crop: `canvas_side` finds the canvas that is large enough for it.

    Attributes:
        size: its side in pixels.
        share: the smallest share of an image's area that it shows.
        side_mm: the shortest side in mm that it shows of an image whose size in mm is known; None
            if crops are not drawn in mm.
    """

    size: int
    share: float
    side_mm: float | None = None


def canvas_side(index: Index, crops: Sequence[Crop], spacing_mm: float | None = None) -> int:
    """The smallest canvas from which no crop has to be enlarged, if the images are large enough.

    Args:
        index: the images.
        crops: every kind of crop.
        spacing_mm: the spacing that finer pixels are resampled to, see `CanvasForm`.

    Returns: S, a multiple of 16, at least the largest crop size.
    """
    largest_crop = max(crop.size for crop in crops)
    usual = max(math.ceil(crop.size / math.sqrt(crop.share)) for crop in crops)
    if spacing_mm is None and all(crop.side_mm is None for crop in crops):
        side = min(index.largest_side, usual)
    else:
        sizes = counts_of(index.rows, "height", "width", "spacing_mm")
        side = max(
            _needed(height, width, pixel_mm, crops, spacing_mm) for height, width, pixel_mm in sizes
        )
    return 16 * math.ceil(max(side, largest_crop) / 16)


def _needed(
    rows: int,
    columns: int,
    pixel_mm: tuple[float, float] | None,
    crops: Sequence[Crop],
    spacing_mm: float | None,
) -> int:
    """The side of the canvas that one image needs: its own, or less if its crops need less."""
    height, width = shape_at((rows, columns), pixel_mm, spacing_mm)
    needed = 0
    for crop in crops:
        share = crop.share
        if crop.side_mm is not None and pixel_mm is not None:
            area = rows * pixel_mm[0] * columns * pixel_mm[1]
            share = min(1.0, crop.side_mm**2 / area)
        needed = max(needed, math.ceil(crop.size / math.sqrt(share)))
    return min(max(height, width), needed)


class CanvasCache:
    """Canvases in memory by row number, up to a limit in bytes; safe to use from several threads.

    The cache fills up and then stays as it is. Every epoch visits every image once in a new order,
    so the image used longest ago is the one most likely to come next: dropping it (LRU) would hit
    less often than keeping what came first, which hits in proportion to its size.
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
        """Keep a canvas, if there is room and it is not kept already."""
        size = canvas.pixels.nbytes
        with self._lock:
            if row not in self._canvases and self.bytes + size <= self.limit_bytes:
                self._canvases[row] = canvas
                self.bytes += size
