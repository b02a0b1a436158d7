"""RUN/model is of the newest checkpoint, or what reads it makes it so, or says that it is not."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from dino_x.cli import main
from dino_x.evaluation.backbone import load_backbone
from dino_x.report.run_data import read_run
from dino_x.report.verdict import state_of
from dino_x.runs import model_folder
from dino_x.runs.folder import RunFolder
from dino_x.runs.model_folder import model_step
from dino_x.training import keeping, train_state
from dino_x.training.steps import Steps
from tests.training.runs import pretrain

FLAGS = ("--effective-batch", 4, "--micro-batch", 4, "--steps", 4)
SETTINGS = {
    "views__local_crops": 1, "data__verify": "headers", "online__every": 0, "checkpoint__keep": 9,
    "report__page": "false", "checkpoint__every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(films, tmp_path_factory):
    """A run of 4 steps with checkpoints of 2 and 4."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(films, run, *FLAGS, **SETTINGS) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it."""
    return RunFolder(shutil.copytree(finished, tmp_path / "run"))


def resume(films, run):
    return pretrain(films, run.path, *FLAGS, "--resume", **SETTINGS)


def is_of(run, step):
    """Whether the model's weights are those of a checkpoint."""
    state = torch.load(run.checkpoints / f"step-{step:08d}.pt", weights_only=True)
    expected = model_folder.vit_weights(state["teacher"])
    found = AutoModel.from_pretrained(run.model).state_dict()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def made_older(run):
    """As a kill between the two writes leaves it: the checkpoint of step 4, the model of step 2."""
    state = torch.load(run.checkpoints / "step-00000002.pt", weights_only=True)
    model_folder.write_model(run, state)
    assert is_of(run, 2)
    assert model_step(run) == 2


def test_a_model_says_its_step(run):
    assert model_step(run) == 4
    assert is_of(run, 4)


def test_a_model_that_did_not_fit_the_disk_is_written_by_a_resume(
    films, tmp_path, capsys, monkeypatch
):
    run = RunFolder(tmp_path / "run")

    def full(run, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(train_state, "write_model", full)
        assert pretrain(films, run.path, *FLAGS, **SETTINGS) == 2
        assert "make room, and finish with --resume" in capsys.readouterr().err
        patch.setattr(keeping, "write_model", full)
        assert resume(films, run) == 2  # still no room
        assert "make room, and finish with --resume" in capsys.readouterr().err
        assert "all 4 steps are done, but there is no model" in state_of(read_run(run.path)).text
    assert resume(films, run) == 0
    assert is_of(run, 4)
    assert "finished after 4 steps" in state_of(read_run(run.path)).text


@pytest.mark.parametrize("how", ["resume", "export", "report", "load"])
def test_an_older_model_is_brought_up(films, run, tmp_path, how):
    made_older(run)
    assert "the model is of step 2" in state_of(read_run(run.path)).text
    if how == "resume":
        assert resume(films, run) == 0
    elif how == "export":
        out = tmp_path / "exported"
        assert main(["export", str(run.path), "--format", "transformers", "--to", str(out)]) == 0
        exported = load_file(out / "model.safetensors")
        own = load_file(run.model / "model.safetensors")
        assert all(torch.equal(exported[name], own[name]) for name in own)
    elif how == "report":
        assert main(["report", str(run.path)]) == 0
    else:
        load_backbone(run.path / "model", device="cpu")
    assert is_of(run, 4)
    assert model_step(run) == 4


def test_a_model_that_is_gone_is_made_again(run):
    shutil.rmtree(run.model)
    load_backbone(run.path, device="cpu")
    assert is_of(run, 4)


def test_a_run_that_trains_writes_its_model_itself(run, monkeypatch):
    made_older(run)
    (run.path / "lock").write_text(json.dumps({"machine": "another", "process": 1, "since": "now"}))
    load_backbone(run.path, device="cpu")
    assert is_of(run, 2)


def test_the_step_is_written_after_the_weights(run, monkeypatch):
    """A kill at any moment leaves a step that is not later than the weights."""
    replaced = []
    replace = os.replace
    monkeypatch.setattr(
        "dino_x.model.backbone.os.replace", lambda a, b: (replaced.append(b.name), replace(a, b))
    )
    made_older(run)
    assert replaced[-1] == "preprocessor_config.json"
    assert "model.safetensors" in replaced


def test_settings_that_are_gone_are_made_again_from_the_checkpoint(films, run, capsys):
    before = run.settings()
    run.settings_file.unlink()
    assert resume(films, run) == 0
    assert "config.yaml was missing: it is made again" in capsys.readouterr().out
    assert run.settings() == before


def test_checkpoints_of_before_are_not_destroyed_by_a_resume_without_settings(films, run, capsys):
    run.settings_file.unlink()
    for path in run.checkpoints.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        del state[model_folder.MADE_OF]
        torch.save(state, path)
        path.with_suffix(".sha256").unlink()
    held = {path.name for path in run.checkpoints.iterdir()}
    assert resume(films, run) == 2
    assert "checkpoints but no config.yaml" in capsys.readouterr().err
    assert {path.name for path in run.checkpoints.iterdir()} == held


def test_weights_that_are_not_finite_are_no_result(films, tmp_path, capsys, monkeypatch):
    """The loss of a step is of the weights before it, so the last step's are not checked by it."""
    run = RunFolder(tmp_path / "run")
    update = Steps.update

    def diverges(self, step, *arguments):
        norm = update(self, step, *arguments)
        if step == 3:
            next(self.state.student.parameters()).data[0] = torch.inf
        return norm

    monkeypatch.setattr(Steps, "update", diverges)
    assert pretrain(films, run.path, *FLAGS, **SETTINGS) == 2
    said = capsys.readouterr().err
    assert "nothing could be saved after step 4: the student's weights have NaN or infinity" in said
    assert "lower optim.lr" in said
    assert is_of(run, 2)
