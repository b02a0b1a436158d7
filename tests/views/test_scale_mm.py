"""Crops whose side is given in millimetres, and resampling to a common spacing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dino_x.config.options import DataOptions, Options, ViewOptions
from dino_x.config.presets import check
from dino_x.data.canvas.canvas import CanvasForm, Crop, canvas_side, make_canvas, shape_at
from dino_x.data.image import Image, ImageRef
from dino_x.data.index.index import Index
from dino_x.errors import UserError
from dino_x.training.prepare import canvas_form
from dino_x.views.crops import draw_views, view_parameters

OPTIONS = ViewOptions()


def sides_mm(p, size_mm):
    """Height and width in mm, [b, V]."""
    return p.height * size_mm[:, :1], p.width * size_mm[:, 1:]


def parameters(size_mm, scale_mm=(40, 80), views=200):
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(draw_views(rng, len(size_mm), views))
    aspect = torch.where(size_mm.isfinite().all(1), size_mm[:, 0] / size_mm[:, 1], 1.0)
    return draws, view_parameters(
        draws, aspect, (0.1, 0.3), 32, OPTIONS, scale_mm=scale_mm, size_mm_B2=size_mm
    )


def test_the_side_of_a_crop_is_between_two_lengths_whatever_the_image():
    size = torch.tensor([[300, 300], [120, 500], [1000, 90.0]], dtype=torch.float64)
    draws, p = parameters(size)
    height, width = sides_mm(p, size)
    torch.testing.assert_close((height * width).sqrt(), 40 + 40 * draws[..., 0])
    shape = width / height
    assert shape.min() >= 0.75 - 1e-9
    assert shape.max() <= 4 / 3 + 1e-9
    assert (p.left + p.width <= 1 + 1e-9).all()
    assert (p.top + p.height <= 1 + 1e-9).all()


def test_an_image_smaller_than_the_crop_is_shown_whole():
    size = torch.tensor([[30, 35.0]], dtype=torch.float64)
    _, p = parameters(size)
    torch.testing.assert_close(p.width, torch.ones_like(p.width))
    torch.testing.assert_close(p.height, torch.ones_like(p.height))


def test_images_of_unknown_size_keep_the_ordinary_scale():
    size = torch.tensor([[float("nan")] * 2, [300, 300]], dtype=torch.float64)
    draws, p = parameters(size)
    area = (p.width * p.height)[0]
    torch.testing.assert_close(area, 0.1 + 0.2 * draws[0, :, 0])


def test_without_the_option_sizes_in_mm_change_nothing():
    draws = torch.from_numpy(draw_views(np.random.default_rng(0), 2, 5))
    aspect = torch.ones(2, dtype=torch.float64)
    size = torch.full((2, 2), 100.0, dtype=torch.float64)
    plain = view_parameters(draws, aspect, (0.1, 0.3), 32, OPTIONS)
    known = view_parameters(draws, aspect, (0.1, 0.3), 32, OPTIONS, size_mm_B2=size)
    assert torch.equal(plain.width, known.width)


def image_of(pixels, spacing):
    return Image(np.asarray(pixels, dtype=np.float32), (0, 255), spacing)


def test_a_canvas_knows_the_size_in_mm_and_true_proportions():
    canvas = make_canvas(image_of(np.zeros((1, 30, 20)), (0.5, 3.0)), CanvasForm(16, 1))
    assert canvas.size_mm == (15.0, 60.0)
    assert canvas.aspect == 0.25
    square = make_canvas(image_of(np.zeros((1, 30, 20)), (0.7, 0.7)), CanvasForm(16, 1))
    assert square.aspect == 1.5
    unknown = make_canvas(image_of(np.zeros((1, 30, 20)), None), CanvasForm(16, 1))
    assert unknown.size_mm is None
    assert unknown.aspect == 1.5


def test_finer_pixels_are_resampled_to_the_common_spacing_and_coarser_ones_are_not():
    assert shape_at((100, 80), (0.5, 0.25), 1.0) == (50, 20)
    assert shape_at((100, 80), (2.0, 1.0), 1.0) == (100, 80)
    assert shape_at((100, 80), None, 1.0) == (100, 80)
    assert shape_at((100, 80), (1e-9, 0.5), 1.0) == (1, 40)


def test_one_object_at_two_spacings_has_one_sharpness():
    """A line 1 mm wide, seen at 0.25 and at 1 mm a pixel: alike at a common spacing of 1 mm."""
    fine = np.zeros((64, 64))
    fine[:, 28:32] = 255
    coarse = np.zeros((16, 16))
    coarse[:, 7] = 255

    def peak(pixels, spacing, common):
        form = CanvasForm(64, 1, spacing_mm=common)
        canvas = make_canvas(image_of(pixels[None], (spacing, spacing)), form)
        return canvas.pixels[0, 32].astype(float) / 65535

    apart = np.abs(peak(fine, 0.25, None) - peak(coarse, 1.0, None)).max()
    alike = np.abs(peak(fine, 0.25, 1.0) - peak(coarse, 1.0, 1.0)).max()
    assert apart > 0.3
    assert alike < 0.25


def row(side, spacing=None):
    return ImageRef(path=Path("a"), height=side, width=side, spacing_mm=spacing)


@pytest.mark.parametrize(
    ("rows", "common", "side"),
    [
        ([row(2000, (0.1, 0.1))], None, 640),  # 200 mm; 20 mm in 64 pixels: 640
        ([row(400, (0.1, 0.1))], None, 128),  # 40 mm: 128
        ([row(100, (1.0, 1.0))], None, 112),  # 320 would do, but there are 100
        ([row(2000)], None, 128),  # unknown: 64 / sqrt(0.25)
        ([row(400, (0.1, 0.1)), row(2000, (0.1, 0.1))], None, 640),
        ([row(2000, (0.1, 0.1))], 0.5, 400),  # 200 mm at 0.5 mm
    ],
)
def test_canvas_is_as_large_as_crops_in_mm_need(rows, common, side):
    assert canvas_side(Index(rows), [Crop(64, 0.25, 20.0)], common) == side


def test_the_form_of_a_run_follows_its_options():
    views = ViewOptions(global_size=64, local_crops=0, global_scale_mm=(20, 30))
    options = Options(views=views, data=DataOptions(slices=3))
    form = canvas_form(options, Index([row(2000, (0.1, 0.1))]), 3)
    assert (form.side, form.channels, form.slices) == (640, 3, 3)
    assert form.windows.ct == "random"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views.global_scale_mm": [50, 20]}, "global_scale_mm must satisfy 0 < low <= high"),
        ({"views.local_scale_mm": [0, 20]}, "local_scale_mm must satisfy"),
        ({"data.spacing_mm": 0}, "data.spacing_mm: input should be greater than 0; got '0'"),
        ({"data.slices": 2}, "data.slices"),
        ({"data.cache_gb": -1}, "data.cache_gb: input should be greater"),
        ({"data.source_weights": [1, 2], "data.paths": ["a"]}, "2 numbers for 1 paths"),
        ({"data.source_weights": [0, 0]}, "not all of them 0"),
        ({"data.source_weights": "eqal"}, "equal"),
        ({"windows.mr": [90, 10]}, "mr must satisfy 0 <= low < high <= 100"),
        ({"windows.ct": "lung"}, "windows.ct is one of random, fixed; got 'lung'"),
    ],
)
def test_options_that_make_no_sense_are_named(settings, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        check(settings)
