import numpy as np
import pytest

from dino_x.data.windowing import (
    BYTE_WINDOW,
    CT_WINDOW,
    apply_window,
    choose_window,
    robust_window,
    voi_window,
)

RAMP = np.arange(1000, dtype=np.float32).reshape(1, 25, 40)
RAMP_WINDOW = tuple(np.percentile(RAMP, (0.5, 99.5)))


@pytest.mark.parametrize(
    ("facts", "window"),
    [
        ({"bits": 8}, BYTE_WINDOW),
        ({"bits": 16}, RAMP_WINDOW),
        ({}, RAMP_WINDOW),
        ({"modality": "CT", "hounsfield": True, "file_window": (0, 9)}, CT_WINDOW),
        ({"modality": "CT", "file_window": (0, 9)}, RAMP_WINDOW),
        ({"modality": "MR", "file_window": (100, 200)}, RAMP_WINDOW),
        ({"modality": "DX", "file_window": (100, 200)}, (100, 200)),
        ({"modality": "MG", "file_window": (100, 200), "bits": 8}, (100, 200)),
        ({"modality": "CR", "file_window": (1000, 4000)}, RAMP_WINDOW),  # all black
        ({"modality": "CR", "file_window": (-90, 0)}, RAMP_WINDOW),  # all white
        ({"modality": "DX", "bits": 8}, BYTE_WINDOW),
        ({"modality": "DX"}, RAMP_WINDOW),
    ],
)
def test_rule(facts, window):
    assert choose_window(RAMP, **facts) == pytest.approx(window)


def test_outliers_have_no_say():
    pixels = RAMP.copy()
    pixels[0, 0, :3] = 1e6, -1e6, np.nan
    low, high = robust_window(pixels)
    assert 0 < low < 20
    assert 980 < high < 1000


def test_few_bright_pixels_on_an_even_background_are_shown():
    pixels = np.zeros((1, 100, 100), dtype=np.float32)
    pixels[0, 5, 5] = 40
    assert robust_window(pixels) == (0, 40)


@pytest.mark.parametrize("value", [-1024.0, 0.0, 1.0, 65535.0, 3e9, -1e30])
def test_constant_image_has_a_window_with_width_and_is_black(value):
    pixels = np.full((1, 4, 4), value, dtype=np.float32)
    low, high = robust_window(pixels)
    assert low < high
    assert np.float32(low) < np.float32(high)
    assert (apply_window(pixels, (low, high)) == 0).all()


def test_image_without_a_finite_value():
    assert robust_window(np.full((1, 2, 2), np.nan, dtype=np.float32)) == (0, 1)


def test_large_image_is_sampled_evenly():
    rows = np.repeat(np.arange(2000, dtype=np.float32)[:, None], 1500, axis=1)
    assert robust_window(rows[None]) == pytest.approx(np.percentile(rows, (0.5, 99.5)), abs=3)
    assert robust_window(rows.T[None]) == pytest.approx(np.percentile(rows, (0.5, 99.5)), abs=3)


@pytest.mark.parametrize(
    ("center", "width", "function", "window"),
    [
        (2048, 4096, "LINEAR", (0, 4095)),  # the standard's own examples
        (2048, 1, "LINEAR", None),
        (0, 100, "LINEAR", (-50, 49)),
        (0, 100, "LINEAR_EXACT", (-50, 50)),
        (0, 1, "LINEAR_EXACT", (-0.5, 0.5)),
        (0, 0, "LINEAR_EXACT", None),
        (0, -5, "SIGMOID", None),
        (float("nan"), 5, "LINEAR", None),
        (0, float("inf"), "LINEAR", None),
    ],
)
def test_window_of_the_standard(center, width, function, window):
    assert voi_window(center, width, function) == window


def test_apply_window_maps_ends_to_0_and_1_and_clips():
    pixels = np.array([-5, 10, 15, 20, 99])
    scaled = apply_window(pixels, (10, 20))
    assert scaled.dtype == np.float32
    assert scaled.tolist() == [0, 0, 0.5, 1, 1]


def test_apply_window_gives_numbers_for_what_is_none():
    pixels = np.array([np.nan, np.inf, -np.inf], dtype=np.float32)
    assert apply_window(pixels, (0, 1)).tolist() == [0, 1, 0]


def test_apply_window_leaves_its_input_alone():
    pixels = RAMP.copy()
    apply_window(pixels, (10, 20))
    np.testing.assert_array_equal(pixels, RAMP)


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))])
def test_window_without_width_is_refused(window):
    with pytest.raises(ValueError, match="has no width"):
        apply_window(RAMP, window)
