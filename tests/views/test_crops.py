import numpy as np
import pytest
import torch
from PIL import Image

from dino_x.config import ViewOptions
from dino_x.views.crops import (
    DRAWS,
    ViewParameters,
    apply_views,
    blur_matrix,
    draw_views,
    resampling_matrix,
    view_parameters,
)


def plain(box, *, flip_x=False, flip_y=False, sigma=0.0, brightness=0.0, contrast=1.0, gamma=1.0):
    """Parameters of one view of one image; ``box`` is left, top, width, height in shares."""
    values = [*box, flip_x, flip_y, sigma, brightness, contrast, gamma]
    types = [torch.float64] * 4 + [torch.bool] * 2 + [torch.float64] * 4
    return ViewParameters(
        *(torch.tensor([[v]], dtype=t) for v, t in zip(values, types, strict=True))
    )


def pillow_crop(picture, box, size):
    """Pillow's own antialiased resize of a box, [size, size] float."""
    side = picture.shape[0]
    left, top, width, height = (value * side for value in box)
    image = Image.fromarray(picture.astype(np.float32))
    resized = image.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    return np.asarray(resized)


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((50, 50))


@pytest.mark.parametrize("size", [7, 32, 64])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.13, 0.31, 0.5, 0.6), (0.4, 0.02, 0.21, 0.33)])
def test_a_crop_equals_pillows(picture, box, size):
    canvas = torch.from_numpy(picture)[None, None]
    crop = apply_views(canvas, plain(box), size)[0, 0].numpy()
    np.testing.assert_allclose(crop, pillow_crop(picture, box, size), atol=2e-6)


def test_a_fine_grating_does_not_alias(picture):
    """Lines one pixel wide, reduced five times: grey, as Pillow has it, not a pattern."""
    lines = np.tile(np.arange(50) % 2, (50, 1)).astype(float)
    canvas = torch.from_numpy(lines)[None, None]
    crop = apply_views(canvas, plain((0, 0, 1, 1)), 10)[0, 0].numpy()
    np.testing.assert_allclose(crop, pillow_crop(lines, (0, 0, 1, 1), 10), atol=0.02)
    assert np.ptp(crop) < 0.2


def test_flips(picture):
    canvas = torch.from_numpy(picture)[None, None]
    box = (0.1, 0.2, 0.5, 0.7)
    straight = apply_views(canvas, plain(box), 16)
    for flips, axes in [((True, False), (3,)), ((False, True), (2,)), ((True, True), (2, 3))]:
        flipped = apply_views(canvas, plain(box, flip_x=flips[0], flip_y=flips[1]), 16)
        torch.testing.assert_close(flipped, straight.flip(axes))


def test_blur_lowers_contrast_between_neighbours_and_keeps_constants():
    canvas = torch.full((1, 1, 40, 40), 0.3, dtype=torch.float64)
    crop = apply_views(canvas, plain((0, 0, 1, 1), sigma=1.5), 20)
    torch.testing.assert_close(crop, torch.full_like(crop, 0.3))
    noise = torch.from_numpy(np.random.default_rng(1).random((1, 1, 20, 20)))
    sharp, soft = (apply_views(noise, plain((0, 0, 1, 1), sigma=s), 20) for s in (0.0, 1.5))
    assert soft.diff(dim=3).abs().mean() < 0.3 * sharp.diff(dim=3).abs().mean()


def test_blur_is_a_gaussian():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[0, 0, 20, 20] = 1.0
    crop = apply_views(point, plain((0, 0, 1, 1), sigma=2.0), 41)[0, 0]
    x = np.arange(41) - 20
    gaussian = np.exp(-0.5 * (x / 2) ** 2)
    gaussian /= gaussian.sum()
    np.testing.assert_allclose(crop.numpy(), np.outer(gaussian, gaussian), atol=1e-12)


def test_intensity():
    canvas = torch.linspace(0.2, 0.6, 30 * 30, dtype=torch.float64).view(1, 1, 30, 30)
    changed = apply_views(canvas, plain((0, 0, 1, 1), brightness=0.1, contrast=1.3, gamma=1.2), 30)
    mean = canvas.mean()
    expected = (((canvas - mean) * 1.3 + mean + 0.1).clamp(0, 1)) ** 1.2
    torch.testing.assert_close(changed, expected)
    bright = apply_views(canvas, plain((0, 0, 1, 1), brightness=0.9), 30)
    assert bright.max() <= 1


def test_crops_do_not_depend_on_what_else_is_in_the_micro_batch():
    rng = np.random.default_rng(2)
    canvas = torch.from_numpy(rng.random((6, 1, 40, 40)))
    aspect = torch.from_numpy(rng.uniform(0.5, 2, 6))
    draws = torch.from_numpy(draw_views(rng, 6, 3))
    options = ViewOptions()

    def crops(span):
        parameters = view_parameters(draws[span], aspect[span], (0.05, 0.32), 16, options)
        return apply_views(canvas[span], parameters, 16).unflatten(0, (3, -1))

    whole = crops(slice(0, 6))
    for start in range(0, 6, 2):
        span = slice(start, start + 2)
        torch.testing.assert_close(crops(span), whole[:, span], rtol=1e-12, atol=1e-14)


def test_boxes_are_inside_the_image_with_the_promised_area_and_shape():
    rng = np.random.default_rng(4)
    aspect = torch.from_numpy(np.exp(rng.uniform(-1.5, 1.5, 400)))  # height / width, 0.22 to 4.5
    draws = torch.from_numpy(draw_views(rng, 400, 5))
    scale, options = (0.1, 0.9), ViewOptions()
    p = view_parameters(draws, aspect, scale, 64, options)
    assert (p.left >= 0).all()
    assert (p.top >= 0).all()
    assert (p.left + p.width <= 1 + 1e-12).all()
    assert (p.top + p.height <= 1 + 1e-12).all()
    torch.testing.assert_close(p.width * p.height, 0.1 + 0.8 * draws[..., 0])
    shape = p.width / (p.height * aspect[:, None])  # true width / height
    inside = (shape >= 0.75 - 1e-9) & (shape <= 4 / 3 + 1e-9)
    touching = (p.width > 1 - 1e-9) | (p.height > 1 - 1e-9)
    assert (inside | touching).all(), "another shape only where no allowed one fits"
    assert inside.double().mean() > 0.6


def test_options_turn_changes_off():
    still = ViewOptions(flip=0, vertical_flip=0, intensity=0, blur=0)
    draws = torch.rand(3, 2, DRAWS, dtype=torch.float64)
    p = view_parameters(draws, torch.ones(3, dtype=torch.float64), (0.5, 1), 32, still)
    assert not p.flip_x.any()
    assert not p.flip_y.any()
    assert (p.sigma == 0).all()
    assert (p.brightness == 0).all()
    assert (p.contrast == 1).all()
    assert (p.gamma == 1).all()


def test_rows_of_the_resampling_matrix_sum_to_one():
    rng = np.random.default_rng(5)
    start, length = torch.from_numpy(rng.random((2, 20)) / 2 + 1e-3)
    matrix = resampling_matrix(start, length, torch.arange(20) % 2 == 0, 33, 12)
    assert matrix.shape == (20, 12, 33)
    torch.testing.assert_close(matrix.sum(2), torch.ones(20, 12, dtype=torch.float64))


def test_a_blur_of_zero_is_the_identity():
    matrix = blur_matrix(torch.tensor([0.0, 1.0], dtype=torch.float64), 9)
    torch.testing.assert_close(matrix[0], torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 9, dtype=torch.float64))
    assert matrix[1].diagonal().max() < 0.6
