"""Runs that are asked to stop by a signal, and those that cannot be."""

import os
import signal
import threading

import pytest
import torch

from dino_x.runs import checkpoint
from dino_x.training import stopping
from dino_x.training.steps import Steps
from dino_x.training.stopping import SIGNALS, Stop
from tests.training.runs import losses, metrics, pretrain, weights

FLAGS = ("--effective-batch", 4, "--micro-batch", 4, "--centering", "sinkhorn")
SETTINGS = {
    "views__local_crops": 1, "data__verify": "headers", "online__every": 0, "optim__warmup": 0,
    "report__snapshots": "false", "train__steps": 5, "checkpoint__every": 4,
}  # fmt: skip


@pytest.fixture
def send(monkeypatch):
    """Have a run send itself signals in the middle of a step, from 1."""
    update = Steps.update

    def install(step, *numbers):
        def signalled(self, at, *arguments):
            if at + 1 == step:
                for number in numbers:
                    os.kill(os.getpid(), number)
            return update(self, at, *arguments)

        monkeypatch.setattr(Steps, "update", signalled)

    return install


@pytest.fixture
def hangup():
    """As in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_it_finishes_the_step_saves_and_goes_on_bit_for_bit(films, tmp_path, send, capsys, number):
    assert pretrain(films, tmp_path / "whole", *FLAGS, **SETTINGS) == 0
    before = {number: signal.getsignal(number) for number in SIGNALS}
    send(3, number)
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS) == 128 + number
    assert {number: signal.getsignal(number) for number in SIGNALS} == before
    line = "dino-x: stopped by a signal after step 3; continue with --resume\n"
    assert capsys.readouterr().err.endswith(line)
    assert [step["step"] for step in metrics(tmp_path / "run")] == [1, 2, 3]
    saved = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["step-00000003.pt"]
    send(0)
    assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", **SETTINGS) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    resumed, whole = (weights(tmp_path / name, 5) for name in ("run", "whole"))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_ctrl_c_twice_stops_at_once(films, tmp_path, send, capfd):
    send(3, signal.SIGINT, signal.SIGINT)
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS) == 130
    printed = capfd.readouterr().err
    assert "stopping after this step; Ctrl-C again stops at once" in printed
    assert "dino-x: stopped; a run continues with --resume" in printed
    assert [step["step"] for step in metrics(tmp_path / "run")] == [1, 2]
    assert not checkpoint.checkpoints(tmp_path / "run" / "checkpoints")


def test_ctrl_c_that_is_heard_twice_under_a_launcher_is_one(monkeypatch):
    with Stop(says=False, give_up=lambda: None).listen() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked == signal.SIGINT
        monkeypatch.setattr(stopping, "SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_in_the_last_step_is_no_stop(films, tmp_path, send):
    send(5, signal.SIGTERM)
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS) == 0


def test_a_stop_that_cannot_save_says_so(films, tmp_path, send, capsys, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    send(3, signal.SIGTERM)
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS) == 2
    printed = capsys.readouterr().err
    assert "nothing could be saved after step 3: [Errno 28] No space left" in printed
    assert "finish with --resume" in printed


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listen() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_takes_no_signals():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def listen():
        with Stop().listen():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]
