"""A run on a large index, whose images are columns, is the run on the folder it was made from."""

import pytest
import torch

from dino_x.data.image import DEFAULT
from dino_x.data.index import large
from dino_x.data.index.catalog import update
from dino_x.data.loading import order, sampler
from dino_x.training import prepare
from tests.training.runs import losses, pretrain, weights

SETTINGS = {"train__effective_batch": 8, "train__micro_batch": 8, "checkpoint__every": 2}
SETTINGS |= {"data__verify": "headers", "train__steps": 4}


@pytest.fixture
def index(films, tmp_path, monkeypatch):
    monkeypatch.setattr(large, "ROWS_FROM", 1)
    monkeypatch.setattr(large, "LISTED_UP_TO", 0)
    out = tmp_path / "index.parquet"
    update([films], reading=DEFAULT, kept_in=out)
    return out


def test_training_is_the_same_to_the_bit(films, index, tmp_path, capsys):
    assert pretrain(films, tmp_path / "folder", **SETTINGS) == 0
    assert pretrain(index, tmp_path / "index", **SETTINGS) == 0
    assert "index.rows (" in capsys.readouterr().out
    assert losses(tmp_path / "index") == losses(tmp_path / "folder")
    mine, its = weights(tmp_path / "index", 4), weights(tmp_path / "folder", 4)
    assert all(torch.equal(mine[name], its[name]) for name in its)


@pytest.mark.slow
def test_a_run_with_a_computed_order_is_resumed_and_one_with_another_order_is_not(
    index, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as computed:
        for module in (order, sampler, prepare):
            computed.setattr(module, "COMPUTED_FROM", 1)
        assert pretrain(index, run, **SETTINGS) == 0
        whole = losses(run)
        (run / "checkpoints" / "step-00000004.pt").unlink()
        assert pretrain(index, run, "--resume", **SETTINGS) == 0
        assert losses(run) == whole
    assert pretrain(index, run, "--resume", **SETTINGS) == 2
    assert "the images are not those" in capsys.readouterr().err
