"""Views of an image: drawn as numbers for the whole effective batch, applied as pure functions.

Shapes: B images of the effective batch, b of a micro-batch, V views, C channels, S side of the
canvas (the square an image is kept in, see data/loading/loader.py), O side of a crop.

A crop with its antialiased resize and flip is one linear map along each axis, and a row of it has
few weights that are not 0: the pixels under a triangle filter. We write down these pixels and their
weights for every row of every view, and gather: all views of all images at once, on any device.
That is what Pillow computes (tested against it); flips cost nothing extra. Blurs are two batched
matrix products. On a CPU this is several times faster than both maps as full matrices.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dino_x.config.options import ViewOptions
from dino_x.losses.transfer import there
from dino_x.views.ct_windows import WindowParameters, apply_windows
from dino_x.views.stains import StainParameters, apply_stains

DRAWS = 12  # uniform numbers a view needs; see the columns in view_parameters
COLOUR_DRAWS = 2  # and those that only colour images need
NO_COLOUR = (0.5, 1.0)  # in their place: saturation as it is, not grey
NO_TURN = 1.0  # in the place of the number for right-angle turns
BLUR_REFERENCE = 224  # a scaled blur_sigma is in pixels of a crop of this side
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey (ITU-R BT.601)

# On a CPU, images are cut a few at a time, so that what lies between canvas and crop stays in its
# caches and the allocator uses the same memory again: 4.2 ms an image instead of 5.8.
BLOCK_BYTES = 8 * 2**20


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
    colour: Tensor  # factor of the distance from grey, of images with three channels
    turns: Tensor  # by 90 degrees, counterclockwise, 0 to 3, int64

    def undistorted(self) -> "ViewParameters":
        """The same cuts and flips, without blur and with intensities as they are."""
        none = torch.zeros_like(self.sigma)
        one = torch.ones_like(self.sigma)
        return replace(self, sigma=none, brightness=none, contrast=one, gamma=one, colour=one)


def draw_views(
    rng: np.random.Generator,
    images: int,
    views: int,
    colours: np.random.Generator | None = None,
    turns: np.random.Generator | None = None,
) -> np.ndarray:
    """Uniform numbers for all views of the effective batch, [B, V, U] float64 in [0, 1].

    Args:
        rng: of ``DRAWS`` numbers a view.
        images: B.
        views: V.
        colours: of ``COLOUR_DRAWS`` more, without which colours are not changed.
        turns: of one more, without which no crop is turned.
    """
    drawn = rng.random((images, views, DRAWS))
    of_colours = np.broadcast_to(NO_COLOUR, (images, views, COLOUR_DRAWS))
    if colours is not None:
        of_colours = colours.random((images, views, COLOUR_DRAWS))
    of_turns = np.full((images, views, 1), NO_TURN)
    if turns is not None:
        of_turns = turns.random((images, views, 1))
    return np.concatenate([drawn, of_colours, of_turns], axis=2)


def view_parameters(
    draws_BVU: Tensor,
    aspect_B: Tensor,
    scale: tuple[float, float],
    size: int,
    options: ViewOptions,
    *,
    scale_mm: tuple[float, float] | None = None,
    size_mm_B2: Tensor | None = None,
    blur: tuple[float, ...] | None = None,
) -> ViewParameters:
    """Turn uniform draws into parameters, given each image's true height / width.

    A crop's area share s and width / height r are uniform and log-uniform in their ranges, with r
    limited to what fits in the image at that s (instead of drawing again until it fits, which
    would consume an unknown number of draws). With ``scale_mm``, a crop's side (the square root of
    its area) is uniform between two lengths in mm where the image's height and width in mm are
    known (``size_mm_B2``, not-a-number where they are not), and at most the whole image.
    ``blur`` is the probability of a blur of each view, ``options.blur`` without it.
    """
    u = draws_BVU.unbind(dim=-1)
    tall = aspect_B[:, None]
    area = scale[0] + (scale[1] - scale[0]) * u[0]
    if scale_mm is not None and size_mm_B2 is not None:
        side_mm = scale_mm[0] + (scale_mm[1] - scale_mm[0]) * u[0]
        share = side_mm.square() / size_mm_B2.prod(dim=1)[:, None]
        area = torch.where(share.isfinite(), share.clamp(max=1), area)
    if not options.elongated:
        widest = (1 / tall).clamp(*options.aspect)  # the ratio of the largest crop that fits
        area = torch.minimum(area, torch.minimum(widest * tall, 1 / (widest * tall)))
    fits = (area / tall, 1 / (area * tall))  # between these it is inside the image
    lowest = torch.full_like(area, options.aspect[0]).clamp(*fits).log()
    highest = torch.full_like(area, options.aspect[1]).clamp(*fits).log()
    ratio = torch.lerp(lowest, highest, u[1]).exp()
    width = torch.sqrt(area * ratio * tall).clamp(max=1)
    height = torch.sqrt(area / (ratio * tall)).clamp(max=1)
    changed = (u[6] < options.intensity).to(area.dtype)
    sigma = options.blur_sigma[0] + (options.blur_sigma[1] - options.blur_sigma[0]) * u[8]
    if options.blur_unit == "scaled":
        sigma = sigma * size / BLUR_REFERENCE
    blurred = u[7] < torch.tensor(blur or [options.blur]).to(u[7])
    return ViewParameters(
        left=u[2] * (1 - width),
        top=u[3] * (1 - height),
        width=width,
        height=height,
        flip_x=u[4] < options.flip,
        flip_y=u[5] < options.vertical_flip,
        sigma=torch.where(blurred, sigma, 0.0),
        brightness=changed * options.brightness * (2 * u[9] - 1),
        contrast=1 + changed * options.contrast * (2 * u[10] - 1),
        gamma=torch.exp(changed * np.log(options.gamma) * (2 * u[11] - 1)),
        colour=colours_of(u[DRAWS], u[DRAWS + 1], changed, options),
        turns=turns_of(u[DRAWS + COLOUR_DRAWS], options.turns),
    )


def colours_of(
    saturation_BV: Tensor, grey_BV: Tensor, changed_BV: Tensor, options: ViewOptions
) -> Tensor:
    """The factor of the distance from grey, [B, V], from two uniform numbers."""
    saturation = 1 + changed_BV * options.saturation * (2 * saturation_BV - 1)
    return torch.where(grey_BV < options.grey, 0.0, saturation)


def turns_of(draws_BV: Tensor, probability: float) -> Tensor:
    """Right-angle turns, int64 [B, V]: 1, 2 or 3, each with a third of the probability, or 0."""
    if not probability:
        return torch.zeros_like(draws_BV, dtype=torch.int64)
    third = (3 * draws_BV / probability).long().clamp(max=2)
    return torch.where(draws_BV < probability, 1 + third, 0)


def resampling_taps(
    start_N: Tensor,
    length_N: Tensor,
    flip_N: Tensor,
    side: int,
    size: int,
    interpolation: str = "bilinear",
    taps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Antialiased resampling of an interval of a line of pixels, as the pixels and their weights.

    Args:
        start_N: where the interval starts, in shares of the line.
        length_N: its length, likewise.
        flip_N: True reverses it.
        side: pixels of the line, S.
        size: pixels of the result, O.
        interpolation: ``bilinear``, a triangle as wide as two output pixels, or ``bicubic``, as
            Pillow's filters of these names (Keys 1981, with a = -0.5).
        taps: K, at least `taps_needed`, which is what None stands for; then it is on the CPU.

    Returns: which pixels make up each pixel of the result, int32 [N, O, K], and their weights,
        [N, O, K], which sum to 1. A triangle filter as wide as one output pixel, as Pillow's
        BILINEAR with ``box``: pixels just outside the interval count too.
    """
    dtype, device = start_N.dtype, start_N.device
    out_O = torch.arange(size, dtype=dtype, device=device) + 0.5
    out_NO = torch.where(flip_N[:, None], size - out_O, out_O)
    step_N1 = (length_N * side / size)[:, None]
    centre_NO = start_N[:, None] * side + out_NO * step_N1
    pixel_N1 = step_N1.clamp(min=1)
    radius_N1 = pixel_N1 if interpolation == "bilinear" else 2 * pixel_N1
    if taps is None:
        taps = taps_needed(length_N, side, size, interpolation)
    first_NO = (centre_NO - radius_N1 - 0.5).floor() + 1
    pixel_NOK = first_NO[:, :, None] + torch.arange(taps, dtype=dtype, device=device)
    weight_NOK = (pixel_NOK + 0.5 - centre_NO[:, :, None]).abs_()
    weight_NOK = weight_NOK.div_(pixel_N1[:, :, None])
    if interpolation == "bilinear":
        weight_NOK = weight_NOK.neg_().add_(1).clamp_(min=0)
    else:
        weight_NOK = cubic(weight_NOK)
    weight_NOK.masked_fill_((pixel_NOK < 0) | (pixel_NOK > side - 1), 0)
    weight_NOK.div_(weight_NOK.sum(dim=2, keepdim=True))
    return pixel_NOK.clamp_(0, side - 1).to(torch.int32), weight_NOK


def taps_needed(length_N: Tensor, side: int, size: int, interpolation: str) -> int:
    """The most pixels of a line that make up one pixel of a result, K, for lengths on the CPU."""
    pixel_N = (length_N * side / size).clamp(min=1)
    radius_N = pixel_N if interpolation == "bilinear" else 2 * pixel_N
    return math.ceil(2 * float(radius_N.numpy().max()))  # whole numbers in an open interval


def cubic(distance: Tensor) -> Tensor:
    """The bicubic filter at distances from 0 in pixels; 0 from 2 on."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def blur_matrix(sigma_N: Tensor, size: int) -> Tensor:
    """A Gaussian blur of a line of O pixels as a matrix, [N, O, O]; sigma 0 is the identity."""
    distance_L = torch.arange(1 - size, size, dtype=sigma_N.dtype, device=sigma_N.device)
    precision_N1 = 0.5 / sigma_N.clamp(min=1e-3).square()[:, None]
    line_NL = (distance_L.square() * -precision_N1).exp_()
    blur_NOO = line_NL.unfold(1, size, 1).flip(1)  # row i is the line from O - 1 - i on
    return blur_NOO.div_(blur_NOO.sum(dim=2, keepdim=True))


def apply_views(
    canvas_bCSS: Tensor,
    parameters: ViewParameters,
    size: int,
    windows: WindowParameters | None = None,
    interpolation: str = "bilinear",
    stains: StainParameters | None = None,
) -> Tensor:
    """Crops of a micro-batch, view-major: [V * b, C, O, O], values in [0, 1].

    Row ``view * b + image``. Pure: the same numbers give the same crops, whatever else is in the
    micro-batch, to rounding. In this order: crop with resize and flip, blur, windows if there are
    any, stains of colour images, saturation, brightness and contrast, gamma, right-angle turns.

    The canvases may be on any device; the parameters and windows are on the CPU, where it is known
    without waiting for a device how large each part of the work is.
    """
    images, channels, side, _ = canvas_bCSS.shape
    views = parameters.left.shape[1]
    block = images
    if canvas_bCSS.device.type == "cpu":
        bytes_an_image = views * channels * size * side * canvas_bCSS.element_size()
        block = max(1, BLOCK_BYTES // bytes_an_image)
    if block >= images:
        return _views_of_block(canvas_bCSS, parameters, size, windows, interpolation, stains)
    crops = canvas_bCSS.new_empty(views, images, channels, size, size)

    def make(span: slice) -> None:
        of_block = _views_of_block(
            canvas_bCSS[span],
            _of_images(parameters, span),
            size,
            None if windows is None else _of_images(windows, span),
            interpolation,
            None if stains is None else _of_images(stains, span),
        )
        crops[:, span] = of_block.unflatten(0, (views, -1))

    # A block is too small for several threads: they would wait for each other at every operation.
    spans = [slice(start, start + block) for start in range(0, images, block)]
    list(_makers(torch.get_num_threads()).map(make, spans))
    return crops.flatten(0, 1)


@cache
def _makers(threads: int) -> ThreadPoolExecutor:
    """Threads that make a block each, with one thread inside."""
    return ThreadPoolExecutor(threads, "dino-x-views", torch.set_num_threads, (1,))


Parameters = TypeVar("Parameters", ViewParameters, WindowParameters, StainParameters)


def _of_images(parameters: Parameters, span: slice) -> Parameters:
    """The parameters of some of the images."""
    return replace(
        parameters, **{f.name: getattr(parameters, f.name)[span] for f in fields(parameters)}
    )


def sent(parameters: Parameters, device: torch.device) -> Parameters:
    """Parameters on a device, sent as one message."""
    if device.type == "cpu":
        return parameters
    values = {f.name: getattr(parameters, f.name) for f in fields(parameters)}
    wide = next(value.dtype for value in values.values() if value.dtype != torch.bool)
    together = there(torch.stack([value.to(wide) for value in values.values()]), device)
    found = zip(values.items(), together, strict=True)
    return replace(parameters, **{name: one.to(value.dtype) for (name, value), one in found})


def _views_of_block(
    canvas_bCSS: Tensor,
    p: ViewParameters,
    size: int,
    windows: WindowParameters | None,
    interpolation: str,
    stains: StainParameters | None,
) -> Tensor:
    """``apply_views`` for images that are few enough."""
    with torch.autocast(canvas_bCSS.device.type, enabled=False):  # bf16 has 8 bits, as a PNG
        return _cut(canvas_bCSS, p, size, windows, interpolation, stains)


def _cut(
    canvas_bCSS: Tensor,
    p: ViewParameters,
    size: int,
    windows: WindowParameters | None,
    interpolation: str,
    stains: StainParameters | None,
) -> Tensor:
    """The same; in the precision of the canvases, whatever the network has."""
    images, channels, side, _ = canvas_bCSS.shape
    views = p.left.shape[1]
    planes = views * images * channels
    here = sent(p, canvas_bCSS.device)

    def by_view(value: Tensor) -> Tensor:
        return value.t().flatten()

    def taps(start: Tensor, length: Tensor, flip: Tensor, lengths: Tensor) -> list[Tensor]:
        intervals = by_view(start), by_view(length), by_view(flip)
        count = taps_needed(lengths, side, size, interpolation)
        found = resampling_taps(*intervals, side, size, interpolation, count)
        return [value.repeat_interleave(channels, 0) if channels > 1 else value for value in found]

    # Lines are gathered: rows of the canvas, and then, as lines, the columns of what that gave.
    down = taps(here.top, here.height, here.flip_y, p.height)
    across = taps(here.left, here.width, here.flip_x, p.width)
    first_line = torch.arange(images * channels, device=canvas_bCSS.device).repeat(views) * side
    rows = _gather(canvas_bCSS.reshape(-1, side), down[0] + first_line[:, None, None], down[1])
    columns = rows.t().contiguous().view(-1, size)  # a line for each (column, plane)
    plane = torch.arange(planes, device=canvas_bCSS.device)[:, None, None]
    crops = _gather(columns, across[0] * planes + plane, across[1]).view(planes, size, size)
    crops = crops.transpose(1, 2).contiguous().view(-1, channels, size, size)

    (blurred_rows,) = by_view(p.sigma).numpy().nonzero()
    if len(blurred_rows):
        blurred = there(blurred_rows, crops.device)
        blur = blur_matrix(by_view(here.sigma)[blurred], size)[:, None]
        crops[blurred] = blur @ crops[blurred] @ blur.transpose(2, 3)
    if windows is not None:
        crops = apply_windows(crops, sent(windows, crops.device))
    if stains is not None and channels == len(LUMA):
        crops = apply_stains(crops, sent(stains, crops.device))

    def of_view(value: Tensor) -> Tensor:
        return by_view(value)[:, None, None, None]

    if channels == len(LUMA) and (p.colour.numpy() != 1).any():
        luma_3 = there(torch.tensor(LUMA, dtype=crops.dtype), crops.device)
        grey = torch.einsum("ncij,c->nij", crops, luma_3)[:, None]
        crops.sub_(grey).mul_(of_view(here.colour)).add_(grey)
    mean = crops.mean(dim=(1, 2, 3), keepdim=True)
    crops.sub_(mean).mul_(of_view(here.contrast)).add_(mean).add_(of_view(here.brightness))
    crops = crops.clamp_(0, 1).pow_(of_view(here.gamma))
    return turned(crops, by_view(p.turns).numpy())


def turned(crops_NCOO: Tensor, turns_N: np.ndarray) -> Tensor:
    """The crops, each turned by so many right angles, counterclockwise, pixel by pixel."""
    for angles in (1, 2, 3):
        (rows,) = np.nonzero(turns_N == angles)
        if len(rows):
            chosen = there(rows, crops_NCOO.device)
            crops_NCOO[chosen] = torch.rot90(crops_NCOO[chosen], angles, (2, 3))
    return crops_NCOO


def _gather(lines_LW: Tensor, line_POK: Tensor, weight_POK: Tensor) -> Tensor:
    """Weighted sums of K lines each: [P * O, W]."""
    taps = line_POK.shape[2]
    return functional.embedding_bag(
        line_POK.to(torch.int32).view(-1, taps),
        lines_LW,
        mode="sum",
        per_sample_weights=weight_POK.view(-1, taps),
    )
