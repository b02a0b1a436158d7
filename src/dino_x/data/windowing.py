"""From physical units to [0, 1]: which values are black and white, and the map between them.

All windows are chosen here, in up to two steps. A reader calls `choose_window` with what it alone
knows of a file (bits of a stored value, padding, the file's own window), and the result goes with
the image. Whoever prepares the image calls `window_of`, or `canvas_window` for a canvas, with the
run's options. What remains for training is to draw a window for each view of a CT
(views/ct_windows.py).

The rule of `choose_window`; the first line that fits counts:

1. CT in Hounsfield units: [-1000, 1000], air to dense bone, the same for every image, so that a
   grey value means the same tissue everywhere.
2. X-ray (CR, DX, MG, ...): the file's own window if it overlaps the image's values. Their stored
   values have no unit, and the acquisition station knew the exposure.
3. 8-bit images: [0, 255]. Someone has windowed them already.
4. All else, MR and 16-bit files among them: the 0.5th to the 99.5th percentile of the image.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dino_x.data.image import Image

if TYPE_CHECKING:  # options take long to import, and processes that read headers have none
    from dino_x.config.options import WindowOptions

# The range of a canvas of CT: the 12 bits of scanners, at 16 steps of uint16 a Hounsfield unit, so
# that whole units are kept exactly.
CT_RANGE = (-1024.0, 65535 / 16 - 1024)

CT_WINDOW = (-1000.0, 1000.0)
BYTE_WINDOW = (0.0, 255.0)
PERCENTILES = (0.5, 99.5)

# Projection radiography, by DICOM modality (PS3.3 C.7.3.1.1.1).
XRAY = frozenset({"CR", "DX", "MG", "RF", "XA", "RG", "IO", "PX", "DR"})

# Percentiles are taken from at most about this many pixels of a regular grid: 0.5% is then still
# thousands of pixels, and a 20-megapixel film costs no more than a CT slice.
_GRID_PIXELS = 1 << 19


def choose_window(
    pixels: np.ndarray,
    *,
    bits: int | None = None,
    modality: str | None = None,
    hounsfield: bool = False,
    file_window: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """The (low, high) that map to 0 and 1, by the rule at the top of this file.

    Args:
        pixels: values in physical units, of any shape.
        bits: bits of a stored value, if `pixels` holds stored values; None otherwise.
        modality: DICOM modality, or None.
        hounsfield: whether the values are Hounsfield units.
        file_window: (low, high) that the file itself asks for, in the units of `pixels`.

    Returns: (low, high), both finite, low < high.
    """
    if hounsfield:
        return CT_WINDOW
    if modality in XRAY and file_window is not None and _overlaps(file_window, pixels):
        return file_window
    if bits == 8:
        return BYTE_WINDOW
    return robust_window(pixels)


def window_of(image: Image, options: WindowOptions) -> tuple[float, float]:
    """The window of an image in evaluation: its own, or percentiles where the options ask for them.

    Returns: (low, high) in the units of its pixels, both finite, low < high.
    """
    if image.modality in XRAY and options.xray == "percentiles":
        return robust_window(image.pixels)
    if image.modality == "MR" and options.mr != PERCENTILES:
        return robust_window(image.pixels, options.mr)
    return image.window


def canvas_window(image: Image, options: WindowOptions) -> tuple[tuple[float, float], bool]:
    """The range of values that a canvas of an image keeps, and whether it is `CT_RANGE`.

    It is `CT_RANGE` for a CT if each of its views is to get a window of its own
    (views/ct_windows.py), and else the window of `window_of`.
    """
    if options.ct == "random" and is_hounsfield(image):
        return CT_RANGE, True
    return window_of(image, options), False


def is_hounsfield(image: Image) -> bool:
    """Whether an image is a CT in Hounsfield units: readers give the CT window to no others."""
    return image.modality == "CT" and image.window == CT_WINDOW


def robust_window(
    pixels: np.ndarray, percentiles: tuple[float, float] = PERCENTILES
) -> tuple[float, float]:
    """Two percentiles of the finite values as a window that always has a width.

    Where the percentiles coincide (a thin object on an even background) the extremes are taken,
    and for a constant image a width of 1 (or of one float32 step, if that is more), with the
    constant at its low end. Without one finite value: (0, 1).
    """
    if pixels.ndim >= 2:
        step = max(1, math.ceil(math.sqrt(pixels.size / _GRID_PIXELS)))
        grid = pixels[..., ::step, ::step]
    else:
        grid = pixels
    values = grid[np.isfinite(grid)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, percentiles))
    if low < high:
        return low, high
    values = pixels[np.isfinite(pixels)]
    low, high = float(values.min()), float(values.max())
    if low < high:
        return low, high
    return low, low + max(1.0, np.spacing(np.float32(abs(low))))


def voi_window(center: float, width: float, function: str = "LINEAR") -> tuple[float, float] | None:
    """The (low, high) of a DICOM window, or None if it is not valid.

    Args:
        center: Window Center (0028,1050), in the units of the rescaled values.
        width: Window Width (0028,1051): at least 1 for LINEAR, above 0 otherwise.
        function: VOI LUT Function (0028,1056). A SIGMOID is taken by its linear part.

    Source: DICOM PS3.3 C.11.2.1.2.1 (LINEAR) and C.11.2.1.3 (LINEAR_EXACT, SIGMOID).

    >>> voi_window(2048, 4096)
    (0.0, 4095.0)
    >>> voi_window(2048, 4096, "LINEAR_EXACT")
    (0.0, 4096.0)
    """
    if not (math.isfinite(center) and math.isfinite(width)):
        return None
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width <= 0:
        return None
    return center - width / 2, center + width / 2


def apply_window(pixels: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map `window` to [0, 1] and clip.

    Args:
        pixels: values of any shape.
        window: finite (low, high), low < high.

    Returns: float32 in [0, 1], the shape of `pixels`. Not-a-number becomes 0, infinities the ends.

    Raises: ValueError for a window without width.

    >>> apply_window(np.array([-1200.0, 0.0, 500.0]), (-1000.0, 1000.0)).tolist()
    [0.0, 0.5, 0.75]
    """
    low, high = window
    if not low < high:
        raise ValueError(f"window ({low}, {high}) has no width")
    scaled = np.subtract(pixels, low, dtype=np.float32)
    scaled /= np.float32(high - low)
    np.clip(scaled, 0, 1, out=scaled)
    return np.nan_to_num(scaled, copy=False, nan=0.0)


def apply_to_channels(pixels_CHW: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map an image to [0, 1]: grey and colour by its window, other channels each by its own.

    Stains, sequences and wavelengths have no common scale: each channel is mapped by its 0.5th and
    99.5th percentile, except in images of 8 bits.

    Args:
        pixels_CHW: values in physical units.
        window: of the image, see `choose_window`.
    """
    if len(pixels_CHW) in (1, 3) or window == BYTE_WINDOW:
        return apply_window(pixels_CHW, window)
    return np.stack([apply_window(plane, robust_window(plane)) for plane in pixels_CHW])


def _overlaps(window: tuple[float, float], pixels: np.ndarray) -> bool:
    """Whether a window shows anything, that is, overlaps the bulk of the image's values."""
    low, high = robust_window(pixels)
    return window[0] < high and low < window[1]
