"""The best checkpoint is kept, and a run that gets no better ends."""

import json

import pytest

from dino_x.cli import main
from dino_x.report.run_data import read_run
from dino_x.report.verdict import state_of
from dino_x.runs.checkpoint import named, steps_of
from dino_x.runs.folder import RunFolder
from dino_x.training.best import Patience, best_checkpoint, lengthened_after
from dino_x.training.online import Online
from tests.training.runs import losses, metrics, pretrain, weights

FLAGS = ("--effective-batch", 4, "--micro-batch", 4)
SETTINGS = {
    "views__local_crops": 1, "data__verify": "headers", "online__every": 2, "checkpoint__every": 2,
    "report__page": "false", "checkpoint__keep": 1,
}  # fmt: skip
RISES_AND_FALLS = {1: 0.1, 2: 0.3, 4: 0.8, 6: 0.5, 8: 0.4, 10: 0.8, 12: 0.7}


@pytest.fixture
def figures(monkeypatch):
    """The online evaluation gives these figures, by step."""
    steps = iter(RISES_AND_FALLS)
    monkeypatch.setattr(
        Online,
        "evaluate",
        lambda self, *_, **__: {"online/retrieval_top1": RISES_AND_FALLS[next(steps)]},
    )


def test_the_best_checkpoint_is_kept_and_named(films, tmp_path, capsys, figures):
    run = RunFolder(tmp_path / "run")
    settings = SETTINGS | {"checkpoint__keep_best": "true", "online__every": 2}
    assert pretrain(films, run.path, *FLAGS, "--steps", 8, **settings) == 0
    assert steps_of(run.checkpoints) == [4, 8]
    assert best_checkpoint(run, 8) == (4, 0.8)
    assert f"{run.path}@step-4 (a --model): online evaluation 0.800" in capsys.readouterr().out


def test_without_it_the_newest_alone(films, tmp_path, figures):
    run = RunFolder(tmp_path / "run")
    assert pretrain(films, run.path, *FLAGS, "--steps", 8, **SETTINGS) == 0
    assert steps_of(run.checkpoints) == [8]


def test_a_run_that_gets_no_better_ends_as_a_run_that_is_done(films, tmp_path, capsys, figures):
    run = RunFolder(tmp_path / "run")
    settings = SETTINGS | {"online__patience": 2}
    assert pretrain(films, run.path, *FLAGS, "--steps", 12, **settings) == 0
    assert "ended early after step 8: 2 evaluations in a row" in capsys.readouterr().out
    assert len(metrics(run.path)) == 8
    assert (run.model / "model.safetensors").is_file()
    assert steps_of(run.checkpoints) == [8]
    assert "ended early after 8 steps" in state_of(read_run(run.path)).text


def test_it_may_be_resumed_on_the_same_trajectory(films, tmp_path, monkeypatch):
    figures = iter([0.1, 0.3, 0.2, 0.1, 0.1, 0.1])
    by_step = {}

    def evaluate(self, *_, **__):
        return {"online/retrieval_top1": by_step.setdefault(len(by_step), next(figures))}

    monkeypatch.setattr(Online, "evaluate", evaluate)
    early, whole = tmp_path / "early", tmp_path / "whole"
    settings = SETTINGS | {"online__patience": 2}
    assert pretrain(films, early, *FLAGS, "--steps", 8, **settings) == 0
    assert len(metrics(early)) == 6
    more = SETTINGS | {"online__patience": 9}
    assert pretrain(films, early, *FLAGS, "--steps", 8, "--resume", **more) == 0
    assert pretrain(films, whole, *FLAGS, "--steps", 8, **SETTINGS | {"online__every": 0}) == 0
    assert losses(early) == losses(whole)
    found, expected = weights(early, 8), weights(whole, 8)
    assert all((found[name] == value).all() for name, value in expected.items())


def test_a_run_that_ended_early_is_done_and_waits_anew_where_it_is_lengthened(
    films, tmp_path, capsys, figures
):
    run = tmp_path / "run"
    settings = SETTINGS | {"online__patience": 2}
    assert pretrain(films, run, *FLAGS, "--steps", 12, **settings) == 0
    before = weights(run, 8)
    capsys.readouterr()
    for _ in range(2):
        assert main(["pretrain", "--out", str(run), "--resume"]) == 0
        assert "ended early after step 8" in capsys.readouterr().out
        assert len(metrics(run)) == 8
        assert all((weights(run, 8)[name] == value).all() for name, value in before.items())
    assert main(["pretrain", "--out", str(run), "--resume", "--steps", "16"]) == 0
    assert "ended early after step 12" in capsys.readouterr().out  # 0.8 and 0.7 after 8 steps
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert len(metrics(run)) == 12


@pytest.mark.parametrize("facts", [{}, {"lengthened": "x"}, {"lengthened": [3, {"after": "y"}]}])
def test_facts_that_say_nothing_lengthen_nothing(facts):
    assert lengthened_after(facts) == []


@pytest.mark.parametrize("option", ["checkpoint.keep_best=true", "online.patience=3"])
def test_either_needs_the_evaluation(films, tmp_path, capsys, option):
    settings = SETTINGS | {"online__every": 0}
    flags = (*FLAGS, "--steps", 1, "--set", option)
    assert pretrain(films, tmp_path / "run", *flags, **settings) == 2
    assert "needs the evaluation while training, which is off" in capsys.readouterr().err


def test_patience():
    waits = Patience(2)
    for figure, over in ((0.5, False), (0.4, False), (0.6, False), (0.6, False), (0.1, True)):
        waits.take(figure)
        assert waits.over is over
    assert not Patience(None).over


def test_the_best_of_no_evaluation_is_none(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    assert best_checkpoint(run, 3) is None
    run.metrics.write_text(json.dumps({"step": 1, "online/retrieval_top1": 0.5}) + "\n")
    assert best_checkpoint(run, 3) == (3, 0.5)


def test_of_several_checkpoints_that_are_equally_good_the_earliest_is_best(tmp_path):
    """A checkpoint has the figure of the last evaluation up to its step, its own step included."""
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    figures = {2: 0.5, 4: 0.7, 5: 0.1, 6: 0.7, 8: 0.6}
    lines = [json.dumps({"step": n, "online/retrieval_top1": f}) for n, f in figures.items()]
    run.metrics.write_text("\n".join(lines) + "\n")
    for step in (2, 4, 6):
        named(run.checkpoints, step).touch()
    assert best_checkpoint(run, 8) == (4, 0.7)
    named(run.checkpoints, 4).unlink()
    assert best_checkpoint(run, 8) == (6, 0.7)
    assert best_checkpoint(run, 5) == (2, 0.5)
