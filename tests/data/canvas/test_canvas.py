from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dino_x.data.canvas.canvas import (
    Canvas,
    CanvasCache,
    CanvasForm,
    Crop,
    canvas_side,
    make_canvas,
)
from dino_x.data.image import Image, ImageRef, Unreadable
from dino_x.data.index.index import Index


def image_of(pixels: np.ndarray, window: tuple[float, float] = (0, 255)) -> Image:
    return Image(np.asarray(pixels, dtype=np.float32), window)


def canvas_of(side: int, value: int = 0) -> Canvas:
    return Canvas(np.full((1, side, side), value, dtype=np.uint16), 1.0)


def test_every_8_bit_value_comes_back_exactly():
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16)
    canvas = make_canvas(image_of(values), CanvasForm(16, 1))
    assert canvas.pixels.dtype == np.uint16
    np.testing.assert_array_equal(canvas.pixels, values * 257)


def test_window_goes_from_black_to_white_and_clips():
    canvas = make_canvas(image_of([[[-2000, -1000], [0, 3000]]], (-1000, 1000)), CanvasForm(2, 1))
    assert canvas.pixels.tolist() == [[[0, 0], [32768, 65535]]]


def test_image_becomes_a_square_and_its_proportions_are_kept():
    canvas = make_canvas(image_of(np.zeros((1, 30, 20))), CanvasForm(16, 1))
    assert canvas.pixels.shape == (1, 16, 16)
    assert canvas.aspect == 1.5


def test_colour_becomes_luma_and_grey_is_repeated():
    colour = np.broadcast_to(np.array([255, 100, 0], dtype=np.float32)[:, None, None], (3, 4, 4))
    luma = (0.299 * 255 + 0.587 * 100) / 255 * 65535
    grey = make_canvas(image_of(colour), CanvasForm(4, 1)).pixels
    assert grey.shape == (1, 4, 4)
    assert np.abs(grey - luma).max() < 1
    three = make_canvas(image_of(colour[1:2]), CanvasForm(4, 3)).pixels
    assert three.shape == (3, 4, 4)
    assert (three == 100 * 257).all()


def test_grey_in_three_equal_channels_loses_nothing_as_luma(rng):
    values = rng.integers(0, 256, (1, 8, 8))
    canvas = make_canvas(image_of(np.repeat(values, 3, axis=0)), CanvasForm(8, 1))
    np.testing.assert_array_equal(canvas.pixels, values * 257)


def test_channels_are_resized_apart():
    pixels = np.zeros((3, 20, 20))
    pixels[1] = 255
    canvas = make_canvas(image_of(pixels), CanvasForm(8, 3))
    assert (canvas.pixels == np.array([0, 65535, 0])[:, None, None]).all()


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 16), (90, 60, 30), (33, 47, 20)])
def test_reducing_is_antialiased(height, width, side):
    """A grating finer than the canvas becomes its mean, and not a coarser grating."""
    stripes = np.tile([0.0, 255.0], width)[:width] * np.ones((height, 1))
    for grating in (stripes[None], stripes.T[None]):
        canvas = make_canvas(image_of(grating), CanvasForm(side, 1)).pixels[0, 2:-2, 2:-2] / 65535
        assert np.abs(canvas - 0.5).max() < 0.08


def test_mean_brightness_is_kept(rng):
    values = rng.integers(0, 256, (1, 96, 64))
    canvas = make_canvas(image_of(values), CanvasForm(32, 1))
    assert canvas.pixels.mean() / 257 == pytest.approx(values.mean(), rel=0.01)


def test_enlarging_is_linear_between_pixels():
    canvas = make_canvas(image_of([[[0, 255], [0, 255]]]), CanvasForm(8, 1)).pixels[0, 0] / 65535
    np.testing.assert_allclose(canvas, [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1], atol=1e-4)


def test_values_that_are_no_numbers_do_not_spread():
    pixels = np.full((1, 32, 32), 255.0)
    pixels[0, 3, 3] = np.nan
    canvas = make_canvas(image_of(pixels), CanvasForm(16, 1)).pixels
    assert (canvas[0, 8:, 8:] == 65535).all()
    assert canvas[0, 0:3, 0:3].min() < 65535


def test_number_of_channels_is_checked():
    with pytest.raises(Unreadable, match="1 channels, and 2 are wanted"):
        make_canvas(image_of(np.zeros((1, 4, 4))), CanvasForm(4, 2))


@pytest.mark.parametrize(
    ("largest", "views", "side"),
    [
        (2000, [(224, 0.32)], 400),  # 224 / sqrt(0.32) = 395.98
        (2000, [(224, 0.32), (96, 0.05)], 432),  # 96 / sqrt(0.05) = 429.3
        (2000, [(64, 0.25)], 128),  # 128 exactly
        (300, [(224, 0.32)], 304),  # no more than the images have
        (64, [(224, 0.32)], 224),  # no less than a crop
        (64, [(100, 1.0)], 112),
    ],
)
def test_canvas_is_as_large_as_the_crops_need(largest, views, side):
    row = ImageRef(path=Path("a"), height=20, width=largest)
    assert canvas_side(Index([row]), [Crop(*view) for view in views]) == side


def test_cache_fills_up_to_its_limit_and_stays():
    cache = CanvasCache(limit_bytes=3 * 2 * 16 + 1)
    for row in range(10):
        cache.put(row, canvas_of(4, row))
    assert len(cache) == 3
    assert cache.bytes == 3 * 2 * 16
    kept = [cache.get(row) for row in range(3)]
    assert [int(canvas.pixels[0, 0, 0]) for canvas in kept if canvas] == [0, 1, 2]
    assert cache.get(3) is None


def test_cache_counts_a_row_once():
    cache = CanvasCache(limit_bytes=1000)
    cache.put(1, canvas_of(4))
    cache.put(1, canvas_of(4))
    assert (len(cache), cache.bytes) == (1, 32)


def test_cache_of_no_bytes_keeps_nothing():
    cache = CanvasCache(limit_bytes=0)
    cache.put(0, canvas_of(2))
    assert cache.get(0) is None


def test_cache_keeps_its_limit_with_many_threads():
    cache = CanvasCache(limit_bytes=32 * 50)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda row: cache.put(row % 400, canvas_of(4)), range(4000)))
    assert len(cache) == 50
    assert cache.bytes == 32 * 50
