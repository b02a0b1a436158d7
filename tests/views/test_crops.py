import numpy as np
import pytest
import torch
from PIL import Image

from dino_x.config.options import ViewOptions
from dino_x.views.crops import (
    ViewParameters,
    apply_views,
    blur_matrix,
    draw_views,
    resampling_taps,
    view_parameters,
)


def plain(box, *, flip_x=False, flip_y=False, sigma=0.0, brightness=0.0, contrast=1.0, gamma=1.0,
          colour=1.0, turns=0):  # fmt: skip
    """Parameters of one view of one image; ``box`` is left, top, width, height in shares."""
    values = [*box, flip_x, flip_y, sigma, brightness, contrast, gamma, colour, turns]
    types = [torch.float64] * 4 + [torch.bool] * 2 + [torch.float64] * 5 + [torch.int64]
    return ViewParameters(
        *(torch.tensor([[v]], dtype=t) for v, t in zip(values, types, strict=True))
    )


def pillow_crop(picture, box, size, filter_=Image.Resampling.BILINEAR):
    """Pillow's own antialiased resize of a box, [size, size] float."""
    side = picture.shape[0]
    left, top, width, height = (value * side for value in box)
    image = Image.fromarray(picture.astype(np.float32))
    resized = image.resize((size, size), filter_, box=(left, top, left + width, top + height))
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


@pytest.mark.parametrize("size", [7, 32, 64])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.13, 0.31, 0.5, 0.6), (0.4, 0.02, 0.21, 0.33)])
def test_a_bicubic_crop_equals_pillows(picture, box, size):
    canvas = torch.from_numpy(picture)[None, None]
    crop = apply_views(canvas, plain(box), size, interpolation="bicubic")[0, 0].numpy()
    expected = pillow_crop(picture, box, size, Image.Resampling.BICUBIC).clip(0, 1)
    np.testing.assert_allclose(crop, expected, atol=2e-6)


def test_the_first_global_crop_is_not_blurred_and_the_second_nearly_always():
    """DINOv3's views: blurred with a probability of 0, 0.9 and, for local crops, 0.5."""
    options = ViewOptions()
    assert (options.blur_global, options.blur) == ((0.0, 0.9), 0.5)
    draws = torch.from_numpy(draw_views(np.random.default_rng(0), 2000, 2))
    one = torch.ones(2000, dtype=torch.float64)
    p = view_parameters(draws, one, (0.3, 1), 224, options, blur=options.blur_global)
    shares = (p.sigma > 0).double().mean(dim=0)
    assert shares.tolist() == pytest.approx([0, 0.9], abs=0.03)
    local = view_parameters(draws, one, (0.05, 0.3), 96, options)
    assert (local.sigma > 0).double().mean(dim=0).tolist() == pytest.approx([0.5] * 2, abs=0.04)


def test_the_blur_is_in_pixels_of_the_crop_unless_it_is_scaled():
    """DINOv3's sigma is 0.1 to 2 pixels at any size."""
    draws = torch.from_numpy(draw_views(np.random.default_rng(0), 500, 4))
    one = torch.ones(500, dtype=torch.float64)
    for size in (96, 224, 768):
        sigma = view_parameters(draws, one, (0.3, 1), size, ViewOptions(blur=1)).sigma
        assert (float(sigma.min()), float(sigma.max())) == pytest.approx((0.1, 2.0), abs=0.01)
    scaled = ViewOptions(blur=1, blur_unit="scaled")
    sigma = view_parameters(draws, one, (0.3, 1), 448, scaled).sigma
    assert (float(sigma.min()), float(sigma.max())) == pytest.approx((0.2, 4.0), abs=0.02)


def test_crops_of_elongated_images_keep_their_aspect_and_are_smaller():
    """DINOv3's crops have a width / height of 3/4 to 4/3 in every image."""
    rng = np.random.default_rng(4)
    aspect = torch.from_numpy(np.exp(rng.uniform(-1.5, 1.5, 400)))
    draws = torch.from_numpy(draw_views(rng, 400, 5))
    p = view_parameters(draws, aspect, (0.1, 1.0), 64, ViewOptions())
    shape = p.width / (p.height * aspect[:, None])
    assert float(shape.min()) >= 0.75 - 1e-9
    assert float(shape.max()) <= 4 / 3 + 1e-9
    area = p.width * p.height
    asked = 0.1 + 0.9 * draws[..., 0]
    assert (area <= asked + 1e-12).all()
    square = (aspect - 1).abs() < 0.2
    torch.testing.assert_close(area[square], asked[square], rtol=0.2, atol=0)
    far = (aspect > 3) | (aspect < 1 / 3)
    assert (area[far] < 0.45).all()
    assert (p.left + p.width <= 1 + 1e-12).all()
    assert (p.top + p.height <= 1 + 1e-12).all()


def test_colours_are_made_weaker_stronger_or_grey():
    """DINOv3: saturation by up to 0.2 where intensities are changed, grey with 0.2."""
    options = ViewOptions()
    assert (options.saturation, options.grey) == (0.2, 0.2)
    drawn = draw_views(np.random.default_rng(0), 1000, 2, np.random.default_rng(1))
    one = torch.ones(1000, dtype=torch.float64)
    p = view_parameters(torch.from_numpy(drawn), one, (0.3, 1), 16, options)
    assert float((p.colour == 0).double().mean()) == pytest.approx(0.2, abs=0.03)
    changed = p.colour[(p.colour != 0) & (p.colour != 1)]
    assert len(changed) / p.colour.numel() == pytest.approx(0.8 * 0.8, abs=0.04)
    assert (float(changed.min()), float(changed.max())) == pytest.approx((0.8, 1.2), abs=0.01)
    without = torch.from_numpy(draw_views(np.random.default_rng(0), 1000, 2))
    same = view_parameters(without, one, (0.3, 1), 16, options)
    assert (same.colour == 1).all()
    assert torch.equal(same.gamma, p.gamma)

    picture = torch.rand(1, 3, 20, 20, dtype=torch.float64)
    grey = apply_views(picture, plain((0, 0, 1, 1), colour=0.0), 20)
    luma = (picture * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)
    torch.testing.assert_close(grey[0], luma.expand(3, -1, -1))
    half = apply_views(picture, plain((0, 0, 1, 1), colour=0.5), 20)
    torch.testing.assert_close(half, (picture + grey) / 2)
    one_channel = picture[:, :1]
    left = apply_views(one_channel, plain((0, 0, 1, 1), colour=0.0), 20)
    torch.testing.assert_close(left, one_channel)


@pytest.mark.parametrize("period", [2, 3, 5.3])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.03, 0.11, 0.8, 0.71), (0.2, 0.4, 0.5, 0.5)])
def test_a_fine_grating_does_not_alias(period, box):
    """Lines finer than the crop's pixels: within 2% of Pillow, almost grey and not a pattern."""
    y, x = np.mgrid[0:200, 0:200]
    for angle in (0, np.pi / 2, 0.5):
        phase = 2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period
        lines = (np.sin(phase + 0.1) > 0).astype(float)
        crop = apply_views(torch.from_numpy(lines)[None, None], plain(box), 16)[0, 0].numpy()
        np.testing.assert_allclose(crop, pillow_crop(lines, box, 16), atol=0.02)
        without = lines[(np.floor((np.arange(16) + 0.5) * 200 / 16)).astype(int)]
        assert np.ptp(without) == 1, "taking every n-th line would give a pattern"
        assert np.abs(crop[1:-1, 1:-1] - lines.mean()).max() < 0.25


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
    scale, options = (0.1, 0.9), ViewOptions(elongated=True)
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
    draws = torch.from_numpy(draw_views(np.random.default_rng(0), 3, 2))
    p = view_parameters(draws, torch.ones(3, dtype=torch.float64), (0.5, 1), 32, still)
    assert not p.flip_x.any()
    assert not p.flip_y.any()
    assert (p.sigma == 0).all()
    assert (p.brightness == 0).all()
    assert (p.contrast == 1).all()
    assert (p.gamma == 1).all()


def resampling_matrix(start, length, flip, side, size):
    """The plain reference: a triangle over every pixel of the line, [N, O, S]."""
    out = torch.arange(size, dtype=start.dtype) + 0.5
    out = torch.where(flip[:, None], size - out, out)
    step = (length * side / size)[:, None]
    centre = (start[:, None] * side + out * step)[:, :, None]
    distance = (torch.arange(side, dtype=start.dtype) + 0.5 - centre).abs()
    weights = (1 - distance / step.clamp(min=1)[:, :, None]).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


@pytest.mark.parametrize(
    ("side", "size"), [(33, 12), (12, 33), (1, 1), (7, 1), (50, 49), (431, 96)]
)
def test_taps_are_the_weights_of_the_whole_line_that_are_not_0(side, size):
    rng = np.random.default_rng(5)
    length = torch.from_numpy(rng.uniform(0.02, 1, 20))
    start = torch.from_numpy(rng.random(20)) * (1 - length)
    flip = torch.arange(20) % 2 == 0
    pixel, weight = resampling_taps(start, length, flip, side, size)
    matrix = torch.zeros(20, size, side, dtype=torch.float64)
    matrix.scatter_add_(2, pixel.long(), weight)
    reference = resampling_matrix(start, length, flip, side, size)
    torch.testing.assert_close(matrix, reference, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(matrix.sum(2), torch.ones(20, size, dtype=torch.float64))


@pytest.mark.parametrize("block_bytes", [1, 10**9])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_views_equal_the_plain_reference(channels, dtype, tolerance, block_bytes, monkeypatch):
    """All of it as full matrices in float64: crops, flips, blurs, intensities, view-major."""
    monkeypatch.setattr("dino_x.views.crops.BLOCK_BYTES", block_bytes)
    rng = np.random.default_rng(8)
    canvas = torch.from_numpy(rng.random((3, channels, 45, 45)))
    aspect = torch.from_numpy(rng.uniform(0.5, 2, 3))
    draws = torch.from_numpy(draw_views(rng, 3, 5))
    options = ViewOptions(vertical_flip=0.5)
    p = view_parameters(draws, aspect, (0.05, 0.9), 17, options)
    assert (p.sigma == 0).any()
    assert (p.sigma > 0).any()
    wanted = []
    for view in range(5):
        for image in range(3):

            def of(value, place=(image, view)):
                return value[place].reshape(1)

            across = resampling_matrix(of(p.left), of(p.width), of(p.flip_x), 45, 17)[0]
            down = resampling_matrix(of(p.top), of(p.height), of(p.flip_y), 45, 17)[0]
            far = (torch.arange(17.0)[:, None] - torch.arange(17.0)[None]).double().square()
            blur = torch.softmax(-far / (2 * of(p.sigma).clamp(min=1e-3) ** 2), dim=1)
            crop = blur @ (down @ canvas[image] @ across.T) @ blur.T
            crop = (crop - crop.mean()) * of(p.contrast) + crop.mean() + of(p.brightness)
            wanted.append(crop.clamp(0, 1) ** of(p.gamma))
    cast = view_parameters(draws.to(dtype), aspect.to(dtype), (0.05, 0.9), 17, options)
    found = apply_views(canvas.to(dtype), cast, 17)
    torch.testing.assert_close(found.double(), torch.stack(wanted), rtol=0, atol=tolerance * 20)


def test_a_blur_of_zero_is_the_identity():
    matrix = blur_matrix(torch.tensor([0.0, 1.0], dtype=torch.float64), 9)
    torch.testing.assert_close(matrix[0], torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 9, dtype=torch.float64))
    assert matrix[1].diagonal().max() < 0.6


def test_views_are_not_rounded_by_autocast():
    rng = np.random.default_rng(3)
    canvas, draws = torch.from_numpy(rng.random((2, 1, 40, 40))).float(), draw_views(rng, 2, 4)
    p = view_parameters(torch.from_numpy(draws).float(), torch.ones(2), (0.3, 1), 16, ViewOptions())
    assert (p.sigma > 0).any()
    plain_crops = apply_views(canvas, p, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(apply_views(canvas, p, 16), plain_crops, rtol=0, atol=0)
