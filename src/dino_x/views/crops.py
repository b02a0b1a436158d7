"""Views of an image: drawn as numbers for the whole effective batch, applied as pure functions.

Shapes: B images of the effective batch, b of a micro-batch, V views, C channels, S side of the
canvas (the square an image is kept in, see data/loader.py), O side of a crop.

A crop, its antialiased resize, flip and blur are one linear map along each axis. We build these
two matrices for every view and apply them to the micro-batch as two batched matrix products:
``crop = R_y @ canvas @ R_x^T``. That is what Pillow computes (tested against it), for all views of
all images at once, on any device, and flips and blurs cost nothing extra.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_x.config import ViewOptions

DRAWS = 12  # uniform numbers a view needs; see the columns in view_parameters
BLUR_REFERENCE = 224  # blur_sigma is in pixels of a crop of this side


@dataclass(frozen=True)
class ViewParameters:
    """What to do for each of b images and V views; boxes in shares of the canvas. All [b, V]."""

    left: Tensor
    top: Tensor
    width: Tensor
    height: Tensor
    flip_x: Tensor
    flip_y: Tensor
    sigma: Tensor  # pixels of the crop; 0 = no blur
    brightness: Tensor
    contrast: Tensor
    gamma: Tensor


def draw_views(rng: np.random.Generator, images: int, views: int) -> np.ndarray:
    """Uniform numbers for all views of the effective batch, [B, V, DRAWS] float64 in [0, 1)."""
    return rng.random((images, views, DRAWS))


def view_parameters(
    draws_BVU: Tensor, aspect_B: Tensor, scale: tuple[float, float], size: int, options: ViewOptions
) -> ViewParameters:
    """Turn uniform draws into parameters, given each image's true height / width.

    A crop's area share s and width / height r are uniform and log-uniform in their ranges, with r
    limited to what fits in the image at that s (instead of drawing again until it fits, which
    would consume an unknown number of draws).
    """
    u = draws_BVU.unbind(dim=-1)
    tall = aspect_B[:, None]
    area = scale[0] + (scale[1] - scale[0]) * u[0]
    fits = (area / tall, 1 / (area * tall))  # between these it is inside the image
    lowest = torch.full_like(area, options.aspect[0]).clamp(*fits).log()
    highest = torch.full_like(area, options.aspect[1]).clamp(*fits).log()
    ratio = torch.lerp(lowest, highest, u[1]).exp()
    width = torch.sqrt(area * ratio * tall).clamp(max=1)
    height = torch.sqrt(area / (ratio * tall)).clamp(max=1)
    changed = (u[6] < options.intensity).to(area.dtype)
    sigma = options.blur_sigma[0] + (options.blur_sigma[1] - options.blur_sigma[0]) * u[8]
    return ViewParameters(
        left=u[2] * (1 - width),
        top=u[3] * (1 - height),
        width=width,
        height=height,
        flip_x=u[4] < options.flip,
        flip_y=u[5] < options.vertical_flip,
        sigma=torch.where(u[7] < options.blur, sigma * size / BLUR_REFERENCE, 0.0),
        brightness=changed * options.brightness * (2 * u[9] - 1),
        contrast=1 + changed * options.contrast * (2 * u[10] - 1),
        gamma=torch.exp(changed * np.log(options.gamma) * (2 * u[11] - 1)),
    )


def resampling_matrix(
    start_N: Tensor, length_N: Tensor, flip_N: Tensor, side: int, size: int
) -> Tensor:
    """Antialiased resampling of an interval of a line of pixels, as a matrix.

    Args:
        start_N: where the interval starts, in shares of the line.
        length_N: its length, likewise.
        flip_N: True reverses it.
        side: pixels of the line, S.
        size: pixels of the result, O.

    Returns: [N, O, S]; each row sums to 1. A triangle filter as wide as one output pixel, as
        Pillow's BILINEAR with ``box``: pixels just outside the interval count too.
    """
    dtype, device = start_N.dtype, start_N.device
    out_O = torch.arange(size, dtype=dtype, device=device) + 0.5
    pixels_S = torch.arange(side, dtype=dtype, device=device) + 0.5
    out_NO = torch.where(flip_N[:, None], size - out_O, out_O)
    step_N1 = (length_N * side / size)[:, None]
    centre_NO = start_N[:, None] * side + out_NO * step_N1
    weights_NOS = (pixels_S - centre_NO[:, :, None]).abs_()
    weights_NOS = weights_NOS.div_(-step_N1.clamp(min=1)[:, :, None]).add_(1).clamp_(min=0)
    return weights_NOS.div_(weights_NOS.sum(dim=2, keepdim=True))


def blur_matrix(sigma_N: Tensor, size: int) -> Tensor:
    """A Gaussian blur of a line of O pixels as a matrix, [N, O, O]; sigma 0 is the identity."""
    pixels_O = torch.arange(size, dtype=sigma_N.dtype, device=sigma_N.device)
    distance_OO = (pixels_O[:, None] - pixels_O[None, :]).square()
    precision_N = 0.5 / sigma_N.clamp(min=1e-3).square()
    blur_NOO = (distance_OO * -precision_N[:, None, None]).exp_()
    return blur_NOO.div_(blur_NOO.sum(dim=2, keepdim=True))


def apply_views(canvas_bCSS: Tensor, parameters: ViewParameters, size: int) -> Tensor:
    """Crops of a micro-batch, view-major: [V * b, C, O, O], values in [0, 1].

    Row ``view * b + image``. Pure: the same numbers give the same crops, whatever else is in the
    micro-batch, to rounding.
    """
    p, (images, channels, side, _) = parameters, canvas_bCSS.shape
    views = p.left.shape[1]
    blur = blur_matrix(p.sigma.flatten(), size) if bool((p.sigma > 0).any()) else None

    def matrices(start: Tensor, length: Tensor, flip: Tensor) -> Tensor:
        matrix = resampling_matrix(start.flatten(), length.flatten(), flip.flatten(), side, size)
        matrix = matrix if blur is None else blur @ matrix
        return matrix.view(images, views, size, side)

    across = matrices(p.left, p.width, p.flip_x).flatten(1, 2)  # [b, V*O, S]
    down = matrices(p.top, p.height, p.flip_y)  # [b, V, O, S]
    rows = canvas_bCSS.flatten(1, 2) @ across.transpose(1, 2)  # [b, C*S, V*O]
    rows = rows.view(images, channels, side, views, size).permute(3, 0, 1, 2, 4)
    crops = down.transpose(0, 1)[:, :, None] @ rows  # [V, b, C, O, O]

    def of_view(value: Tensor) -> Tensor:
        return value.transpose(0, 1)[:, :, None, None, None]

    mean = crops.mean(dim=(2, 3, 4), keepdim=True)
    crops = (crops - mean) * of_view(p.contrast) + mean + of_view(p.brightness)
    crops = crops.clamp(0, 1) ** of_view(p.gamma)
    return crops.flatten(0, 1)
