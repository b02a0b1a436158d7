"""Steps whose loss, gradient or teacher is no number: skipped, then a step back, then the end."""

import json
import os
import shutil
import signal

import pytest
import torch

from dino_x.exact import ExactStep, KoLeo
from dino_x.training.trainer import Trainer
from tests.training.runs import metrics, pretrain, weights

FLAGS = ("--effective-batch", 4, "--micro-batch", 2, "--centering", "sinkhorn", "--queue", 16)
SETTINGS = {
    "checkpoint__keep": 99, "views__local_crops": 1, "data__verify": "headers", "online__every": 0,
    "report__snapshots": "false", "gram__weight": 1.0, "optim__warmup": 0, "train__steps": 9,
}  # fmt: skip


@pytest.fixture
def spoil(monkeypatch):
    """Make the gradient not-a-number in some steps, from 1; in ``stops`` send SIGTERM as well."""
    gradients = Trainer.gradients

    def install(steps, stops=(), again=False):
        def spoiled(self, step, *arguments):
            result = gradients(self, step, *arguments)
            if step + 1 in steps and (again or not self.state.recovery.went_back):
                next(p for p in self.student.parameters() if p.grad is not None).grad += torch.nan
            if step + 1 in stops:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        monkeypatch.setattr(Trainer, "gradients", spoiled)

    return install


def in_gradient(spoil, monkeypatch):
    spoil({3})


def in_loss(spoil, monkeypatch):
    steps, value = [], KoLeo.value

    def spoiled(self, cls_VBF, images):
        steps.append(1)  # over the effective batch, so once a step
        return value(self, cls_VBF, images) * (torch.nan if len(steps) == 3 else 1)

    monkeypatch.setattr(KoLeo, "value", spoiled)


def in_teacher(spoil, monkeypatch):
    bottlenecks = ExactStep.bottlenecks

    def spoiled(self, batch, *arguments):
        found = bottlenecks(self, batch, *arguments)
        if batch.plan.step == 2:
            found[2][0, 0] = torch.inf
        return found

    monkeypatch.setattr(ExactStep, "bottlenecks", spoiled)


def valid_lines(run):
    """metrics.jsonl, refusing what is no JSON: NaN and Infinity."""
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    return metrics(run)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (in_gradient, "the gradient norm is nan"),
        (in_loss, "koleo is nan"),
        (in_teacher, "the teacher's bottlenecks is not finite"),
    ],
)
def test_a_step_is_skipped_and_nothing_changes(
    films, tmp_path, spoil, monkeypatch, capsys, where, what
):
    where(spoil, monkeypatch)
    settings = SETTINGS | {"train__steps": 3, "checkpoint__every": 1}
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 0
    before, after = (weights(tmp_path / "run", step) for step in (2, 3))
    assert any(name.startswith(".gram") for name in before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    first, second, third = valid_lines(tmp_path / "run")
    assert (third["step"], third["images"], third["skipped"]) == (3, 12, 1)
    assert "loss" not in third
    assert "skipped" not in first | second
    printed = " ".join(capsys.readouterr().out.split())
    assert f"step 3 is skipped: {what}" in printed
    assert "skipped 1 step whose loss or gradient was not finite" in printed


@pytest.mark.parametrize("bad", [{4, 5}, {4, 5, 6}], ids=["skipped", "gone back"])
def test_a_resume_in_between_changes_nothing(films, tmp_path, spoil, bad):
    """Stopped between two steps that are skipped, or after it went back, and taken up again."""
    settings = SETTINGS | {"checkpoint__every": 2}
    spoil(bad)
    assert pretrain(films, tmp_path / "whole", *FLAGS, **settings) == 0
    for stop in (4, 5, 7):
        spoil(bad, stops={stop})
        assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", **settings) == 128 + 15
    spoil(bad)
    assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", **settings) == 0
    whole, resumed = (weights(tmp_path / name, 9) for name in ("whole", "run"))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    lines = [[(s["step"], s["lr"]) for s in valid_lines(tmp_path / n)] for n in ("whole", "run")]
    assert lines[0] == lines[1]


def test_after_three_in_a_row_it_goes_back_with_half_the_rate(films, tmp_path, spoil, capsys):
    settings = SETTINGS | {"checkpoint__every": 2}
    assert pretrain(films, tmp_path / "plain", *FLAGS, **settings) == 0
    capsys.readouterr()
    spoil({4, 5, 6})
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 0
    printed = " ".join(capsys.readouterr().out.split())
    line = (
        "step 6: the gradient norm is nan; going back to the checkpoint after step 2, and on from"
        " there with 0.5 times the learning rate"
    )
    assert printed.count(line) == 1
    plain, run = metrics(tmp_path / "plain"), valid_lines(tmp_path / "run")
    assert [step["step"] for step in run] == list(range(1, 10))
    assert not any("skipped" in step for step in run)
    for number, (step, usual) in enumerate(zip(run, plain, strict=True), 1):
        assert step["lr"] == usual["lr"] * (0.5 if number > 2 else 1)
        assert "loss" in step
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-00000002.pt", weights_only=True)
    assert state["recovery"]["lr_factor"] == 0.5, "a resume from there has the lower rate too"
    (finding,) = [
        json.loads(line) for line in (tmp_path / "run" / "health.jsonl").read_text().splitlines()
    ]
    assert (finding["state"], finding["step"]) == ("diverging", 2)
    assert "step 6: the gradient norm is nan" in finding["seen"]


def test_the_second_time_it_stops(films, tmp_path, spoil, capsys):
    spoil({4, 5, 6}, again=True)
    settings = SETTINGS | {"checkpoint__every": 2, "train__backoff": 0.1}
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 2
    captured = capsys.readouterr()
    assert captured.out.count("going back") == 1
    assert "0.1 times" in captured.out
    assert "stopped at step 6: the gradient norm is nan; the last good" in captured.err
    assert "step-00000002.pt; try a lower optim.lr" in captured.err


def test_zero_stops_at_the_first(films, tmp_path, spoil, capsys):
    spoil({4})
    settings = SETTINGS | {"checkpoint__every": 2, "train__skip_not_finite": 0}
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 2
    assert "stopped at step 4: the gradient norm is nan; the last" in capsys.readouterr().err


def test_a_checkpoint_of_before_there_was_any_of_this_is_taken_up(films, tmp_path, spoil):
    settings = SETTINGS | {"checkpoint__every": 3}
    assert pretrain(films, tmp_path / "run", *FLAGS, **settings) == 0
    usual = metrics(tmp_path / "run")[-1]["lr"]
    checkpoints = tmp_path / "run" / "checkpoints"
    old = torch.load(checkpoints / "step-00000003.pt", weights_only=True)
    del old["recovery"]
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    torch.save(old, checkpoints / "step-00000003.pt")
    spoil({4, 5, 6})
    assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", **settings) == 0
    assert metrics(tmp_path / "run")[-1]["lr"] == usual / 2


def test_the_page_about_a_run_with_skipped_steps_is_made(films, tmp_path, spoil):
    spoil({2, 9})
    assert pretrain(films, tmp_path / "run", *FLAGS, **SETTINGS, report__page=True) == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
