"""The picture of what a network will see is what training and evaluation see."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dino_x.cli import main
from dino_x.commands import views
from dino_x.config.resolve import Facts, resolve
from dino_x.data.index.index import build_index
from dino_x.data.loading.loader import Loader
from dino_x.data.preparation import to_square, windowed
from dino_x.data.readers.registry import read
from dino_x.training.prepare import canvas_form
from dino_x.training.step.seen import seen_of
from tests.conftest import TINY, tiny_settings


def seen(films, **more):
    """What is seen of the first four films, and their index."""
    index = build_index([films], verify="headers")
    options = resolve({**TINY, **more}, Facts(len(index))).options
    with Loader(index, canvas_form(options, index, 3), cache_bytes=0, workers=1) as loader:
        canvases = loader.batch(np.arange(4))
    return seen_of(options, canvases, 3, 8), index


def test_the_first_picture_is_what_evaluation_sees(films):
    found, index = seen(films)
    for number, ref in enumerate(index.rows[:4]):
        image = read(ref)
        expected = to_square(windowed(image, resolve({}, Facts(1)).options.windows), 3, 32)
        np.testing.assert_allclose(found.whole_nCSS[number], expected, atol=0.06)


def test_crops_and_masks_are_there_and_follow_the_options(films):
    found, _ = seen(films)
    assert found.global_nVCSS.shape == (4, 2, 3, 32, 32)
    assert found.local_nVCSS.shape == (4, 3, 3, 16, 16)
    assert found.masks_nVPP.shape == (4, 2, 4, 4)
    assert found.masks_nVPP.any()
    crops = found.global_nVCSS
    assert crops.min() >= 0
    assert crops.max() <= 1
    none, _ = seen(films, **{"views.local_crops": 0, "masks.probability": 0.0})
    assert none.local_nVCSS.shape[1] == 0
    assert not none.masks_nVPP.any()


def test_the_picture_has_all_images_and_no_name(films, tmp_path, capsys):
    out = tmp_path / "views.png"
    flags = ["--data", str(films), "--out", str(out), *tiny_settings()]
    assert main(["views", *flags]) == 0
    with Image.open(out) as picture:
        assert picture.size == (2 * (6 * (128 + 4) + 12), 16 + 4 + 8 * (128 + 16 + 8))
        assert not picture.text
    said = capsys.readouterr().out
    assert said.count(".png") == 17  # sixteen images and the picture
    assert "doubtful" not in said
    assert main(["views", *flags]) == 2
    assert "exists; remove it, or name another file with --out" in capsys.readouterr().err


@pytest.mark.parametrize("level", [0, 255, 128])
def test_an_image_that_shows_nothing_is_doubtful(tmp_path, capsys, level):
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(noise if number != 1 else np.full_like(noise, level)).save(
            tmp_path / f"{number}.png"
        )
    views.draw_views({**TINY, "data.paths": [str(tmp_path)]}, tmp_path / "v.png", Console())
    assert "doubtful  2: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name a folder of images with --data"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--data", ".", "--out", "v.jpg"], "must end in .png"),
        (["--data", ".", "--out", "nowhere/v.png"], "there is no folder"),
        (["--data", ".", "--set", "views.gama=2"], "did you mean 'views.gamma'"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["views", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
