"""Checkpoints written in a thread: exactly the state of their step, and none is lost."""

import threading

import pytest
import torch

from dino_x.runs import checkpoint, saving
from dino_x.training.steps import Steps
from tests.training.runs import metrics, pretrain, weights

FLAGS = ("--effective-batch", 4, "--micro-batch", 4, "--centering", "sinkhorn", "--queue", 16)
SETTINGS = {
    "views__local_crops": 1, "data__verify": "headers", "online__every": 0, "optim__warmup": 0,
    "report__snapshots": "false", "train__steps": 4, "checkpoint__keep": 9,
}  # fmt: skip


def test_training_goes_on_while_a_checkpoint_is_written(films, tmp_path, monkeypatch):
    """The write of step 2 ends only once steps 3 and 4 have been recorded."""
    save, seen = torch.save, []

    def slowly(state, path):
        if state["step"] == 2:
            for _ in range(3000):
                if len(metrics(tmp_path / "run")) >= 4:
                    break
                threading.Event().wait(0.01)
        seen.append((state["step"], len(metrics(tmp_path / "run"))))
        save(state, path)

    settings = SETTINGS | {"checkpoint__every": 2, "train__steps": 5}
    at_once = settings | {"checkpoint__background": "false"}
    assert pretrain(films, tmp_path / "at once", *FLAGS, **at_once) == 0
    monkeypatch.setattr(checkpoint.torch, "save", slowly)
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 0
    assert [step for step, _ in seen] == [2, 4, 5]
    assert seen[0][1] >= 4
    for step in (2, 4, 5):
        found, expected = (weights(tmp_path / name, step) for name in ("run", "at once"))
        moved = weights(tmp_path / "run", 5)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), (step, name)
        assert step == 5 or any(not torch.equal(found[name], moved[name]) for name in found)


def test_a_fault_waits_for_the_checkpoint_that_is_being_written(films, tmp_path, monkeypatch):
    save, update = torch.save, Steps.update
    failed = threading.Event()

    def after_the_fault(state, path):
        assert failed.wait(60)
        save(state, path)

    def fails(self, step, *arguments):
        if step == 2:
            failed.set()
            raise RuntimeError("a fault")
        return update(self, step, *arguments)

    monkeypatch.setattr(checkpoint.torch, "save", after_the_fault)
    monkeypatch.setattr(Steps, "update", fails)
    with pytest.raises(RuntimeError, match="a fault"):
        pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS, checkpoint__every=2)
    assert len(weights(tmp_path / "run", 2)) > 10
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_without_room_for_a_copy_it_is_written_at_once(films, tmp_path, monkeypatch):
    def no_room(state):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(saving, "copied", no_room)
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS, checkpoint__every=2) == 0
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == [
        "step-00000002.pt", "step-00000004.pt",
    ]  # fmt: skip


def test_what_else_fails_in_the_thread_is_not_swallowed(films, tmp_path, monkeypatch):
    def broken(*arguments):
        raise KeyError("a fault of ours")

    monkeypatch.setattr(checkpoint.torch, "save", broken)
    with pytest.raises(KeyError, match="a fault of ours"):
        pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS, checkpoint__every=2)
