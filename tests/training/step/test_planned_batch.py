"""The images of a step: each is decoded once, and every pass sees the same numbers."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dino_x.data.loading import loader as loader_module
from dino_x.data.loading.loader import Canvases
from dino_x.errors import UserError
from dino_x.training.step.planned_batch import one_ahead, packed, unpacked
from tests.training.runs import metrics, pretrain

CPU = torch.device("cpu")
FLAGS = ("--effective-batch", 8, "--micro-batch", 2, "--centering", "sinkhorn")


def test_an_image_is_decoded_once_a_step(films, tmp_path, monkeypatch):
    """Three passes over four micro-batches, and nothing is kept between steps."""
    seen, read = [], loader_module.registry.read
    monkeypatch.setattr(
        loader_module.registry, "read", lambda ref: (seen.append(ref.path), read(ref))[1]
    )
    monkeypatch.setattr("dino_x.training.prepare.is_plain", lambda *_: True)  # looks at a few
    settings = {
        "data__cache_mb": 0, "data__verify": "headers", "train__steps": 3, "online__every": 0,
        "report__snapshots": "false", "report__page": "false", "model__channels": 1,
    }  # fmt: skip
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 0
    steps = metrics(tmp_path / "run")
    assert "koleo" in steps[0], "or there are fewer passes"
    assert len(seen) == 3 * 8


def canvases(pixels):
    return Canvases(pixels, torch.ones(len(pixels)))


def test_canvases_are_kept_in_16_bits_without_a_loss():
    stored = np.arange(2**16, dtype=np.uint16).reshape(4, 1, 128, 128)
    pixels = torch.from_numpy(np.divide(stored, np.float32(65535), dtype=np.float32))
    kept = packed(canvases(pixels))
    assert kept.pixels.dtype == torch.uint16
    assert torch.equal(unpacked(kept, CPU).pixels, pixels)


def test_other_pixels_are_kept_as_they_are():
    for pixels in (torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5, dtype=torch.float64)):
        kept = packed(canvases(pixels))
        assert torch.equal(unpacked(kept, CPU).pixels, pixels)


def test_the_next_canvases_are_packed_while_these_are_used():
    made, used = [], []

    def make():
        for number in range(4):
            made.append(number)
            yield number

    with ThreadPoolExecutor(1) as pool:
        for number in one_ahead(make(), pool):
            used.append(number)
            until = time.monotonic() + 10
            while len(made) < min(4, number + 2) and time.monotonic() < until:
                time.sleep(0.001)
            assert made == list(range(min(4, number + 2)))
    assert used == [0, 1, 2, 3]


def test_an_error_of_the_source_comes_where_its_canvases_would():
    def make():
        yield 1
        raise UserError("they give out")

    with ThreadPoolExecutor(1) as pool:
        coming = one_ahead(make(), pool)
        assert next(coming) == 1
        with pytest.raises(UserError, match="they give out"):
            next(coming)
