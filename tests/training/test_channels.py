"""Images of any number of channels train with all of them; none is dropped in silence."""

import numpy as np
import pytest
import tifffile

from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.image import ImageRef
from dino_x.data.index.channels import refuse_channels
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading.loader import Loader
from dino_x.data.windowing import apply_window, robust_window
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from tests.training.runs import losses, pretrain

STAINS, CELLS = 4, 16


@pytest.fixture
def cells(tmp_path, rng):
    """Images of four stains, whose brightness differs a thousandfold."""
    folder = tmp_path / "cells"
    folder.mkdir()
    for number in range(CELLS):
        values = rng.random((STAINS, 40, 48)) * np.array([60000, 6000, 600, 60])[:, None, None]
        path = folder / f"{number:02d}.tif"
        tifffile.imwrite(path, values.astype(np.uint16), photometric="minisblack",
                         planarconfig="separate", metadata=None)  # fmt: skip
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_model_of_as_many_channels_sees_each_in_its_own_range(cells):
    index = build_index([cells])
    form = CanvasForm(side=48, channels=STAINS)
    with Loader(index, form, cache_bytes=0, workers=1) as loader:
        pixels = loader.batch(np.arange(2)).pixels.numpy()
    assert pixels.shape == (2, STAINS, 48, 48)
    assert (pixels.mean(axis=(2, 3)) > 0.4).all()  # the faint ones, too
    stored = tifffile.imread(cells / "00.tif")
    assert tifffile.imread(cells / "00.tif").shape == (STAINS, 40, 48)
    wanted = [apply_window(plane, robust_window(plane)).mean() for plane in stored]
    np.testing.assert_allclose(pixels[0].mean(axis=(1, 2)), wanted, atol=0.02)


def test_a_run_with_all_channels(cells, tmp_path, capsys):
    flags = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 2)
    settings = {"model__channels": STAINS, "report__page": "true"}
    assert pretrain(cells, tmp_path / "run", *flags, **settings) == 0
    assert np.isfinite(losses(tmp_path / "run")).all()
    backbone = load_backbone(tmp_path / "run" / "model", device="cpu")
    assert backbone.preparation.channels == STAINS
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").is_file()


def test_another_number_of_channels_is_refused_with_the_way_out(cells, tmp_path, capsys):
    flags = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 2)
    assert pretrain(cells, tmp_path / "run", *flags) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "4 channels, and the model takes 3; model.channels=4 trains on all channels" in said


def refs(*channels):
    return [ImageRef(path=f"{n}", height=3, width=3, channels=c) for n, c in enumerate(channels)]


@pytest.mark.parametrize(("model", "left"), [(3, [1, 3, 3]), (1, [1, 3, 3]), (4, [4, 4]), (2, [2])])
def test_images_that_a_model_cannot_take_are_listed_and_said(model, left):
    index = Index(refs(1, 3, 4, 2, 4, 3))
    assert refuse_channels(index, model) == 6 - len(left)
    assert [ref.channels for ref in index.rows] == left
    assert len(index.skipped) == 6 - len(left)
    assert len(index.notes) == 1


def test_nothing_is_said_where_all_fit():
    index = Index(refs(1, 3, 3))
    assert refuse_channels(index, 3) == 0
    assert not index.notes


def test_nothing_left_is_an_error():
    with pytest.raises(UserError, match=r"5 channels, and the model takes 3; model.channels=5"):
        refuse_channels(Index(refs(5, 5)), 3)
