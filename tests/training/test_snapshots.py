"""Snapshots: what they hold, and that training is the same with and without them."""

from functools import partial

import numpy as np
import pytest
import torch

from dino_x.config.resolve import Facts, resolve
from dino_x.data.index.index import build_index
from dino_x.data.loading.loader import Loader
from dino_x.runs.folder import RunFolder
from dino_x.training import snapshots
from dino_x.training.prepare import canvas_form
from dino_x.training.snapshots import (
    as_bytes,
    dense_grid,
    fixed_images,
    shifted_squares,
    snapshot_steps,
)
from dino_x.training.step.seen import seen_of
from tests.training.runs import losses, pretrain, weights

QUICK = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 4, "--centering", "sinkhorn")


def arrays_of(run):
    found = {}
    for path in sorted((run / "snapshots").iterdir()):
        with np.load(path, allow_pickle=False) as arrays:
            found[path.name] = dict(arrays)
    return found


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    out = tmp_path_factory.mktemp("snapshots") / "run"
    assert pretrain(films, out, *QUICK) == 0
    return out


def test_training_is_the_same_with_and_without_them(run, films, tmp_path):
    assert pretrain(films, tmp_path / "without", *QUICK, report__snapshots=False) == 0
    assert not (tmp_path / "without" / "snapshots").exists()
    assert losses(run) == losses(tmp_path / "without")
    ours, theirs = weights(run, 4), weights(tmp_path / "without", 4)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_there_is_one_at_the_beginning_and_up_to_the_end(run):
    found = arrays_of(run)
    assert list(found) == [f"step-{step:08d}.npz" for step in (0, 1, 2, 4)]
    for content in found.values():
        assert content["features"].shape == (6, 16, 16, 32)  # 4 x 4 patches, 4 shifts each way
        assert content["features"].dtype == np.float16
        assert content["images"].shape == (6, 1, 32, 32)
        assert content["aspect"] == pytest.approx(40 / 48)
    first, *_, last = found.values()
    assert np.array_equal(first["images"], last["images"])
    assert not np.array_equal(first["features"], last["features"])
    assert not list((run / "snapshots").glob("*.partial"))


def test_the_first_one_has_what_the_network_is_shown(run, films):
    """Crops as `seen_of` cuts them, masked patches darkened; the others have none."""
    first, *others = arrays_of(run).values()
    assert not any("global_crops" in content for content in others)
    assert first["global_crops"].shape == (6, 2, 3, 32, 32)
    assert first["local_crops"].shape == (6, 3, 3, 16, 16)
    settings = RunFolder(run).settings()
    index = build_index([films], verify="headers")
    options = resolve(settings, Facts(len(index))).options
    with Loader(index, canvas_form(options, index, 3), cache_bytes=0, workers=1) as loader:
        canvases = loader.batch(fixed_images(options.train.seed, len(index)))
    expected = seen_of(options, canvases, 3, 8)
    shown = np.rint(255 * expected.shaded_nVCSS)
    np.testing.assert_allclose(first["global_crops"], shown, atol=1)
    assert (expected.shaded_nVCSS < expected.global_nVCSS).any(), "some patches are masked"


def test_large_crops_are_made_smaller():
    crops = np.tile(np.linspace(0, 1, 512), (1, 2, 1, 512, 1))
    small = as_bytes(crops)
    assert (small.shape, small.dtype) == ((1, 2, 1, 256, 256), np.uint8)
    np.testing.assert_allclose(small[0, 0, 0, 7], 255 * np.linspace(0, 1, 256), atol=1)
    assert as_bytes(np.zeros((6, 0, 1, 512, 512))).shape == (6, 0, 1, 512, 512)


def test_the_last_one_has_the_features_of_the_model(run):
    from transformers import AutoModel

    last = arrays_of(run)["step-00000004.npz"]
    model = AutoModel.from_pretrained(run / "model")
    square = (torch.from_numpy(last["images"][2:3]).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        tokens = model(shifted_squares(square, 8).expand(-1, 3, -1, -1)).last_hidden_state
    expected = dense_grid(tokens[:, 1 + model.config.num_register_tokens :])
    # The images in the file are rounded to 8 bits, the features to 16.
    np.testing.assert_allclose(last["features"][2], expected, atol=0.05)


def test_a_resumed_run_has_the_same_ones(run, films, tmp_path):
    out = tmp_path / "run"
    again = partial(pretrain, films, out, *QUICK, checkpoint__every=1, checkpoint__keep=9)
    assert again() == 0
    for step in (2, 3, 4):
        (out / "checkpoints" / f"step-{step:08d}.pt").unlink()
    (out / "snapshots" / "step-00000004.npz").unlink()
    assert again("--resume") == 0
    for name, content in arrays_of(run).items():
        for key, values in content.items():
            assert np.array_equal(values, arrays_of(out)[name][key]), (name, key)


def test_it_keeps_no_images_if_told_so(films, tmp_path):
    assert pretrain(films, tmp_path / "run", *QUICK, report__images=False) == 0
    assert all("images" not in content for content in arrays_of(tmp_path / "run").values())


def test_a_full_disk_does_not_stop_the_run(films, tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshots, "write_atomically", full)
    assert pretrain(films, tmp_path / "run", *QUICK) == 0
    assert len(losses(tmp_path / "run")) == 4


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 100, 12345])
def test_at_most_six_and_always_the_first_and_the_last(steps):
    found = snapshot_steps(steps)
    assert (found[0], found[-1]) == (0, steps)
    assert len(found) <= 6
    assert found == sorted(set(found))


@pytest.mark.parametrize("images", [1, 5, 6, 1000])
def test_the_images_follow_from_the_seed_alone(images):
    chosen = fixed_images(3, images)
    assert len(chosen) == min(6, images) == len(set(chosen))
    assert chosen.max() < images
    assert np.array_equal(chosen, fixed_images(3, images))


@pytest.mark.parametrize(
    ("size", "patch", "shifts"), [(21, 7, 4), (36, 12, 4), (32, 16, 4), (98, 7, 1), (80, 10, 2)]
)
def test_shifted_patches_are_those_of_the_moved_image(size, patch, shifts):
    """Against a plain cut of each patch out of the image with its border repeated, in float64."""
    square = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, size, size)))
    copies = shifted_squares(square, patch)
    assert len(copies) == shifts**2

    def means(images):  # a network whose patch tokens are the mean of what the patch sees
        cut = images.unfold(2, patch, patch).unfold(3, patch, patch).mean(dim=(-1, -2))
        return cut.flatten(2).transpose(1, 2)

    grid = dense_grid(means(copies))
    padded = np.pad(square[0].numpy(), ((0, 0), (patch, patch), (patch, patch)), mode="edge")
    side = size // patch * shifts
    assert grid.shape == (side, side, 2)
    moves = [round((i - (shifts - 1) / 2) * patch / shifts) for i in range(shifts)]
    for row in range(side):
        for column in range(side):
            y = patch + row // shifts * patch + moves[row % shifts]
            x = patch + column // shifts * patch + moves[column % shifts]
            expected = padded[:, y : y + patch, x : x + patch].mean(axis=(1, 2))
            np.testing.assert_allclose(grid[row, column], expected, atol=1e-12)


def test_fine_grids_are_averaged_down_and_large_values_kept_finite():
    grid = torch.full((64, 64, 3), 1e9)
    grid[..., 0] = 1.0
    stored = snapshots.as_stored(grid)
    assert stored.shape == (32, 32, 3)
    assert np.isfinite(stored).all()
    assert (stored[..., 0] == 1).all()
