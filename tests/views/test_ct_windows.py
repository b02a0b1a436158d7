import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from dino_x.config.options import Options, ViewOptions, WindowOptions
from dino_x.data.canvas.canvas import CanvasForm, make_canvas
from dino_x.data.image import Image
from dino_x.data.loading.loader import Canvases
from dino_x.data.windowing import CT_RANGE, CT_WINDOW, robust_window, window_of
from dino_x.training.step.batch_plan import Cutter, draw_batch_plan
from dino_x.views.crops import apply_views, draw_views, view_parameters
from dino_x.views.ct_windows import (
    CT_WINDOWS,
    WindowParameters,
    apply_windows,
    draw_windows,
    named_windows,
    window_parameters,
)

LOW, HIGH = CT_RANGE
STILL = ViewOptions(flip=0, intensity=0, blur=0, aspect=(1, 1))


def hu(windows: WindowParameters) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre and width in Hounsfield units."""
    black, white = (value * (HIGH - LOW) + LOW for value in (windows.black, windows.white))
    return (black + white) / 2, white - black


def test_crops_without_distortions_have_the_named_windows_themselves():
    draws = draw_windows(np.random.default_rng(0), 50, 2)
    named = torch.from_numpy(named_windows(draws))
    centre, width = hu(window_parameters(named, torch.ones(50, dtype=torch.bool)))
    which = (torch.from_numpy(draws)[..., 0] * 4).long()
    expected = torch.tensor(list(CT_WINDOWS.values()), dtype=torch.float64)[which]
    torch.testing.assert_close(torch.stack([centre, width], dim=-1), expected)


def test_windows_are_the_named_ones_and_a_little_around_them():
    draws = torch.from_numpy(draw_windows(np.random.default_rng(0), 500, 8))
    centre, width = hu(window_parameters(draws, torch.ones(500, dtype=torch.bool)))
    which = (draws[..., 0] * 4).long()
    for number, (name, (c, w)) in enumerate(CT_WINDOWS.items()):
        chosen = which == number
        assert 800 < chosen.sum() < 1200, name
        far = (centre[chosen] - c).abs() / w
        assert far.max() <= 0.15 + 1e-9
        assert far.max() > 0.14
        ratio = width[chosen] / w
        assert 1 / 1.5 - 1e-9 <= ratio.min() < 0.68
        assert 1.48 < ratio.max() <= 1.5 + 1e-9


def test_views_of_an_image_have_windows_of_their_own():
    draws = torch.from_numpy(draw_windows(np.random.default_rng(0), 3, 8))
    black = window_parameters(draws, torch.ones(3, dtype=torch.bool)).black
    assert len(black.flatten().unique()) == 24


def test_images_that_are_no_ct_are_left_alone():
    draws = torch.from_numpy(draw_windows(np.random.default_rng(0), 4, 3))
    is_ct = torch.tensor([True, False, True, False])
    windows = window_parameters(draws, is_ct)
    crops = torch.rand(12, 1, 5, 5, dtype=torch.float64)
    changed, crops = (x.view(3, 4, 25) for x in (apply_windows(crops, windows), crops))
    torch.testing.assert_close(changed[:, ~is_ct], crops[:, ~is_ct], rtol=0, atol=0)
    assert ((changed - crops)[:, is_ct].abs().amax(dim=2) > 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_windows_equal_a_plain_loop(dtype, tolerance):
    rng = np.random.default_rng(1)
    draws, crops = draw_windows(rng, 3, 5), rng.random((15, 2, 3, 7))
    is_ct = [True, False, True]
    cast = window_parameters(torch.from_numpy(draws).to(dtype), torch.tensor(is_ct))
    found = apply_windows(torch.from_numpy(crops).to(dtype), cast)
    for view in range(5):
        for image in range(3):
            crop, (which, move, widen) = crops[view * 3 + image], draws[image, view]
            if is_ct[image]:
                centre, width = list(CT_WINDOWS.values())[int(which * 4)]
                centre += 0.15 * width * (2 * move - 1)
                width *= 1.5 ** (2 * widen - 1)
                units = LOW + crop * (HIGH - LOW)
                crop = np.clip((units - centre + width / 2) / width, 0, 1)
            np.testing.assert_allclose(found[view * 3 + image], crop, atol=tolerance * 60)


def ct(pixels, modality="CT", window=CT_WINDOW) -> Image:
    return Image(np.asarray(pixels, dtype=np.float32), window, (1.0, 1.0), modality)


RANDOM = CanvasForm(16, 1, windows=WindowOptions(ct="random"))


def test_a_canvas_of_ct_keeps_whole_hounsfield_units_exactly():
    units = np.arange(-1024, 3072).reshape(1, 64, 64)
    canvas = make_canvas(ct(units), CanvasForm(64, 1, windows=RANDOM.windows))
    assert canvas.hounsfield
    np.testing.assert_array_equal(canvas.pixels / 16 - 1024, units)


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (ct(np.zeros((1, 16, 16)), "MR"), RANDOM),
        (ct(np.zeros((1, 16, 16)), None), RANDOM),
        (ct(np.zeros((1, 16, 16)), window=(0.0, 4095.0)), RANDOM),  # stored values, no units
        (ct(np.zeros((1, 16, 16))), CanvasForm(16, 1)),
    ],
)
def test_all_else_is_windowed_in_the_canvas(image, form):
    canvas = make_canvas(image, form)
    assert not canvas.hounsfield
    low, high = image.window
    assert canvas.pixels[0, 0, 0] == round(65535 * (0 - low) / (high - low))


def test_the_window_comes_after_the_antialiased_resize():
    """A crop is what a scanner with larger pixels would show, which the other order is not.

    Stripes of bone (1000 HU) and fat (-100 HU), finer than the crop's pixels, in the soft-tissue
    window: their mean, 450 HU, is white. Windowed first they would be grey.
    """
    stripes = np.tile(np.repeat([1000.0, -100.0], 2), 16) * np.ones((64, 1))
    canvas = make_canvas(ct(stripes[None]), CanvasForm(64, 1, windows=RANDOM.windows))
    pixels = torch.from_numpy(canvas.pixels / 65535)[None]
    black, white = ((value - LOW) / (HIGH - LOW) for value in (-160, 240))
    window = WindowParameters(*(torch.full((1, 1), v, dtype=torch.float64) for v in (black, white)))
    draws = torch.from_numpy(draw_views(np.random.default_rng(0), 1, 1))
    one = torch.ones(1, dtype=torch.float64)
    whole = view_parameters(draws, one, (1, 1), 8, STILL)
    crop = apply_views(pixels, whole, 8, window)[0, 0].numpy()

    def resized(values):
        picture = Pillow.fromarray(values.astype(np.float32))
        return np.asarray(picture.resize((8, 8), Pillow.Resampling.BILINEAR))

    def windowed(values):
        return np.clip((values + 160) / 400, 0, 1)

    np.testing.assert_allclose(crop, windowed(resized(stripes)), atol=1e-3)
    assert np.abs(crop - resized(windowed(stripes))).max() > 0.3


def cutter(**settings) -> Cutter:
    options = Options(views=ViewOptions(global_size=16, local_size=8, **settings))
    return Cutter(options, [0.5] * 3, [0.25] * 3, torch.device("cpu"), torch.float64)


def test_crops_do_not_depend_on_what_else_is_in_the_micro_batch():
    rng = np.random.default_rng(2)
    pixels, is_ct = torch.from_numpy(rng.random((6, 1, 40, 40))), torch.arange(6) % 3 == 0
    draws, windows = draw_views(rng, 6, 2), draw_windows(rng, 6, 2)

    def crops(span):
        flags = is_ct[span] if is_ct[span].any() else None
        canvases = Canvases(pixels[span], torch.ones(6)[span], None, flags)
        found = cutter().crops(canvases, draws[span], 16, (0.3, 1), windows_bVU=windows[span])
        return found.unflatten(0, (2, -1))

    whole = crops(slice(0, 6))
    for start in range(6):
        span = slice(start, start + 1)
        torch.testing.assert_close(crops(span), whole[:, span], rtol=1e-12, atol=1e-12)


def test_drawing_windows_changes_no_other_draw():
    window = draw_batch_plan(Options(), 3, 100, 2, 16)
    assert window.global_windows_BVU.shape == (256, 2, 3)
    assert window.local_windows_BVU.shape == (256, 8, 3)
    again = draw_batch_plan(Options(), 3, 100, 2, 16)
    np.testing.assert_array_equal(window.global_windows_BVU, again.global_windows_BVU)
    other = draw_batch_plan(Options(), 4, 100, 2, 16)
    assert (window.global_windows_BVU != other.global_windows_BVU).all()
    assert window.global_windows_BVU[0, 0, 0] != window.global_draws_BVU[0, 0, 0]


def test_x_ray_and_mr_by_their_options():
    pixels = np.random.default_rng(0).normal(100, 20, (1, 50, 50)).astype(np.float32)
    film, mr = (Image(pixels, (0.0, 50.0), None, modality) for modality in ("DX", "MR"))
    usual = WindowOptions()
    assert window_of(film, usual) == window_of(mr, usual) == (0.0, 50.0)
    assert window_of(film, WindowOptions(xray="percentiles")) == robust_window(pixels)
    assert window_of(mr, WindowOptions(xray="percentiles")) == (0.0, 50.0)
    low, high = window_of(mr, WindowOptions(mr=(10, 90)))
    np.testing.assert_allclose((low, high), np.percentile(pixels, (10, 90)))
    assert window_of(film, WindowOptions(mr=(10, 90))) == (0.0, 50.0)
