"""How an image becomes what a network sees: values in [0, 1], a square, a normalised tensor.

Everything that prepares images comes here: the canvases that training crops, evaluation, the small
evaluation while training, snapshots, and the pictures of the report.

    image in physical units   --`windowed`-->      [C, H, W] in [0, 1]
    [C, H, W] in [0, 1]       --`to_square`-->     [1, 3 or C, S, S] in [0, 1]
    squares of a batch        --`normalised`-->    a network's input

A canvas is a square kept as 16-bit integers (canvas/canvas.py). `whole_canvases` makes of canvases
what `windowed` and `to_square` make of the images themselves.

B images, C channels, H x W pixels, S side of a square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pillow

from dino_x.config.options import WindowOptions
from dino_x.data.image import Image, Unreadable
from dino_x.data.windowing import CT_RANGE, CT_WINDOW, apply_to_channels, window_of

if TYPE_CHECKING:  # reading headers needs no torch, which takes seconds to import
    from torch import Tensor

# Grey of a colour: ITU-R BT.601, as Pillow and JPEG have it.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

# Channels of a grey image differ by no more than this share of the window: it is what the colour
# conversion of JPEG leaves of a grey.
GREY_TOLERANCE = 2 / 255


def to_grey(pixels_CHW: np.ndarray) -> np.ndarray:
    """The luma of a colour image, and a grey image as it is: [1, H, W].

    Raises: Unreadable for another number of channels.
    """
    if len(pixels_CHW) == 1:
        return pixels_CHW
    if len(pixels_CHW) != 3:
        raise Unreadable(f"{len(pixels_CHW)} channels are neither grey nor colour")
    return np.tensordot(LUMA, pixels_CHW, axes=1)[None]


def shows_grey(pixels_CHW: np.ndarray, width: float) -> bool:
    """Whether an image is grey: it has one channel, or three that are equal but for rounding.

    Args:
        pixels_CHW: values of any unit.
        width: of the window that they are shown in, in the same unit.

    >>> shows_grey(np.array([[[10.0]], [[11.0]], [[12.0]]]), width=255)
    True
    """
    if len(pixels_CHW) != 3:
        return len(pixels_CHW) == 1
    apart_HW = np.ptp(pixels_CHW, axis=0)
    return not (apart_HW > GREY_TOLERANCE * width).any()  # a pixel without a value has no colour


def windowed(image: Image, windows: WindowOptions) -> np.ndarray:
    """The values of an image in the window of evaluation, float32 [C, H, W] in [0, 1]."""
    return apply_to_channels(image.pixels, window_of(image, windows))


def to_square(
    pixels_CHW: np.ndarray,
    channels: int,
    side: int,
    *,
    resampled_to: tuple[int, int] | None = None,
) -> np.ndarray:
    """An image as a square, antialiased, whatever its proportions.

    Args:
        pixels_CHW: float32 in [0, 1].
        channels: 1 (colour becomes luma), 3 (grey is repeated) or C.
        side: S, in pixels.
        resampled_to: height and width that the image is resampled to before it becomes a square.

    Returns: float32 [channels, S, S] in [0, 1].

    Raises: Unreadable for an image that cannot have so many channels.
    """
    allowed = (1, 3) if channels in (1, 3) else (channels,)
    if len(pixels_CHW) not in allowed:
        raise Unreadable(f"{len(pixels_CHW)} channels, and {channels} are wanted")
    if channels == 1:
        pixels_CHW = to_grey(pixels_CHW)
    height, width = resampled_to or pixels_CHW.shape[1:]
    planes = [_resized(plane, height, width) for plane in pixels_CHW]
    square_CSS = np.stack([_resized(plane, side, side) for plane in planes]).clip(0, 1)
    if len(square_CSS) < channels:
        return np.repeat(square_CSS, channels, axis=0)
    return square_CSS


def _resized(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """One channel, float32, to [height, width].

    Pillow's bilinear filter widens with the reduction, which is what keeps fine structure from
    turning into patterns; it never overshoots, as Lanczos does at the edges of bones and labels.
    """
    if plane.shape == (height, width):
        return plane
    picture = Pillow.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Pillow.Resampling.BILINEAR))


def whole_canvases(canvases_BCSS: Tensor, hounsfield_B: Tensor | None, side: int) -> Tensor:
    """Whole canvases as squares of another side, in the window of evaluation.

    It is what `windowed` and `to_square` make of the images themselves, up to the 16 bits of a
    canvas.

    Args:
        canvases_BCSS: in [0, 1].
        hounsfield_B: bool, which canvases span `CT_RANGE` instead of a window; None if none does.
        side: of the squares, in pixels.

    Returns: [B, C, side, side] in [0, 1].
    """
    squares_BCSS = resized_squares(canvases_BCSS, side).clamp(0, 1)
    if hounsfield_B is None:
        return squares_BCSS
    (low, high), (black, white) = CT_RANGE, CT_WINDOW
    units_BCSS = squares_BCSS * (high - low) + low
    windowed_BCSS = ((units_BCSS - black) / (white - black)).clamp(0, 1)
    is_ct_B111 = hounsfield_B.to(squares_BCSS.device)[:, None, None, None]
    return windowed_BCSS.where(is_ct_B111, squares_BCSS)


def resized_squares(squares_BCSS: Tensor, side: int) -> Tensor:
    """Squares of another side, antialiased as `to_square` does it, on the device they are on."""
    from torch.nn.functional import interpolate

    return interpolate(
        squares_BCSS, (side, side), mode="bilinear", antialias=True, align_corners=False
    )


def normalised(squares_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Squares in [0, 1] as a network takes them.

    Args:
        squares_BCSS: of one channel, which then becomes those of mean and std, or of as many.
        mean: of each channel, on the scale where the window is [0, 1].
        std: of each channel, on the same scale.
    """
    import torch

    from dino_x.losses.transfer import there

    dtype, device = squares_BCSS.dtype, squares_BCSS.device
    mean_C11, std_C11 = (
        there(torch.tensor(values, dtype=dtype)[:, None, None], device) for values in (mean, std)
    )
    return (squares_BCSS - mean_C11).div_(std_C11)
