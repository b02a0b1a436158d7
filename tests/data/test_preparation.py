"""All who prepare an image get the same one, and the exported image processor makes it, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from dino_x.config.options import WindowOptions
from dino_x.data.canvas.canvas import CanvasForm, make_canvas, to_unit
from dino_x.data.image import Image, Unreadable
from dino_x.data.index.index import build_index
from dino_x.data.preparation import (
    normalised,
    resized_squares,
    shows_grey,
    to_grey,
    to_square,
    whole_canvases,
    windowed,
)
from dino_x.data.readers import registry
from dino_x.evaluation.embed import prepared
from dino_x.model.backbone import write_vit
from dino_x.model.pretrained import Preparation
from dino_x.report.looking import square_of
from tests.tiny import image_processor

from ..evaluation.conftest import save_tiny

SHAPES = [(40, 56), (57, 33), (32, 32), (9, 21)]
WINDOWS = WindowOptions(ct="random")


def noise(channels, height, width, window=(0.0, 255.0), **facts):
    values = np.random.default_rng(height).integers(0, 256, (channels, height, width))
    return Image(values.astype(np.float32), window, **facts)


def ct(height, width):
    """Hounsfield units that reach beyond the window of evaluation, not beyond a canvas."""
    units = np.random.default_rng(height).integers(-1024, 3000, (1, height, width))
    return Image(units.astype(np.float32), (-1000.0, 1000.0), modality="CT")


def canvas_as_tensor(canvas):
    unit = np.empty(canvas.pixels.shape, dtype=np.float32)
    to_unit(canvas.pixels, unit)
    return torch.from_numpy(unit)[None]


# Evaluation, canvases, the report


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("of_image", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_canvas_holds_what_evaluation_sees(height, width, of_image, channels):
    """To the 16 bits of a canvas: half a step of it."""
    image = noise(of_image, height, width)
    seen = to_square(windowed(image, WINDOWS), channels, 32)
    canvas = make_canvas(image, CanvasForm(32, channels, windows=WINDOWS))
    np.testing.assert_allclose(canvas_as_tensor(canvas)[0], seen, rtol=0, atol=0.51 / 65535)


def test_evaluation_and_the_report_read_the_same_square(tmp_path, write_png):
    """The report's has 8 bits."""
    write_png("grey.png", 1, (40, 56))
    write_png("colour.png", 2, (40, 56, 3))
    for ref in build_index([tmp_path], verify="headers").rows:
        channels = registry.read(ref).pixels.shape[0]
        form = (channels, 24, 1)
        ((_, squares),) = prepared([ref], {form}, 1)
        report = square_of(ref, Preparation(24, (0.5,) * channels, (0.25,) * channels))
        np.testing.assert_array_equal(np.rint(255 * squares[form][0].numpy()), report)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("side", [16, 32, 40])
def test_a_whole_canvas_is_what_evaluation_sees(height, width, side):
    """Where the canvas is as large as the image: a resize of a resize is another image."""
    image = noise(1, max(height, width), max(height, width))
    canvas = make_canvas(image, CanvasForm(max(height, width), 1))
    whole = whole_canvases(canvas_as_tensor(canvas), None, side)
    seen = to_square(windowed(image, WINDOWS), 1, side)
    np.testing.assert_allclose(whole[0], seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [32, 48])
def test_a_whole_canvas_of_hounsfield_units_gets_the_window_of_evaluation(side):
    """A step of such a canvas is 1/16 HU, of 2000 in the window."""
    image = ct(side, side)
    canvas = make_canvas(image, CanvasForm(side, 1, windows=WINDOWS))
    assert canvas.hounsfield
    both = torch.cat([canvas_as_tensor(canvas)] * 2)
    units, plain = whole_canvases(both, torch.tensor([True, False]), side)
    np.testing.assert_allclose(units, windowed(image, WINDOWS), rtol=0, atol=1e-4)
    torch.testing.assert_close(plain, both[1], rtol=0, atol=1e-6)


# The exported image processor


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_exported_image_processor_makes_the_same_tensor(
    tmp_path, write_png, channels, height, width
):
    """To what 8 bits leave: it rounds to them after each of two passes of its resize."""
    mean, std = [0.45, 0.5, 0.55][:channels], [0.2, 0.25, 0.3][:channels]
    size = 24
    write_vit(tiny_vit(tmp_path, channels), tmp_path / "model", size, mean, std)
    path = write_png("x.png", 5, (height, width, 3)[: 2 if channels == 1 else 3])
    processor = image_processor(tmp_path / "model")
    theirs = processor(Pillow.open(path), return_tensors="pt")["pixel_values"]
    square = to_square(windowed(registry.read(path), WINDOWS), channels, size)
    ours = normalised(torch.from_numpy(square)[None], mean, std)
    assert theirs.shape == ours.shape == (1, channels, size, size)
    step = torch.tensor(std)[:, None, None] * 255  # of 8 bits, after normalising: 1 / step
    assert ((ours - theirs) * step).abs().max() <= 1.01
    assert ((ours - theirs) * step).abs().mean() < 0.4


def tiny_vit(folder, channels):
    from transformers import AutoModel

    save_tiny(folder / "tiny", channels=channels)
    return AutoModel.from_pretrained(folder / "tiny")


# The steps


def test_grey_is_luma():
    colour = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    expected = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    np.testing.assert_allclose(to_grey(colour)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(to_grey(colour[:1]), colour[:1])


@pytest.mark.parametrize(("difference", "grey"), [(0, True), (2, True), (3, False)])
def test_channels_that_differ_by_rounding_are_grey(difference, grey):
    pixels = np.full((3, 4, 4), 100, dtype=np.float32)
    pixels[1, 2, 3] += difference
    assert shows_grey(pixels, width=255) is grey
    assert shows_grey(pixels[:1], width=0) is True
    pixels[:, 0, 0] = np.nan  # as padding is
    assert shows_grey(pixels, width=255) is grey
    assert shows_grey(pixels[:1], width=0) is True
    assert shows_grey(pixels[:2], width=255) is False


def test_an_image_can_be_resampled_before_it_becomes_a_square():
    pixels = np.random.default_rng(0).random((1, 40, 60), dtype=np.float32)
    coarse = to_square(pixels, 1, 32, resampled_to=(10, 15))
    assert np.abs(np.diff(coarse)).mean() < 0.5 * np.abs(np.diff(to_square(pixels, 1, 32))).mean()
    same = to_square(pixels, 1, 32, resampled_to=(40, 60))
    np.testing.assert_array_equal(same, to_square(pixels, 1, 32))


@pytest.mark.parametrize(("has", "wanted"), [(1, 2), (4, 3), (4, 1), (2, 3), (5, 4)])
def test_channels_that_an_image_cannot_have_are_refused(has, wanted):
    with pytest.raises(Unreadable, match=f"{has} channels"):
        to_square(np.zeros((has, 4, 4), dtype=np.float32), wanted, 4)


def test_any_number_of_channels_stays(rng):
    pixels = rng.random((5, 4, 4), dtype=np.float32)
    np.testing.assert_array_equal(to_square(pixels, 5, 4), pixels)


@pytest.mark.parametrize(("side", "size"), [(32, 20), (20, 32), (21, 21)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_resizes_agree(side, size, dtype):
    square = np.random.default_rng(side).random((1, side, side), dtype=np.float32)
    resized = resized_squares(torch.from_numpy(square)[None].to(dtype), size)
    assert resized.dtype == dtype
    np.testing.assert_allclose(resized[0], to_square(square, 1, size), rtol=0, atol=1e-6)


def test_a_grey_square_takes_the_channels_of_mean_and_std():
    square = torch.rand(2, 1, 3, 3)
    three = normalised(square, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    assert three.shape == (2, 3, 3, 3)
    torch.testing.assert_close(three[:, 2:], (square - 0.3) / 4)


def test_a_canvas_of_a_windowed_ct_says_so():
    image = ct(16, 16)
    assert not make_canvas(image, CanvasForm(16, 1)).hounsfield
    assert not make_canvas(
        replace(image, modality="MR"), CanvasForm(16, 1, windows=WINDOWS)
    ).hounsfield
