"""Going on: for longer, with data that have moved, from another folder."""

import json
import os
import shutil

import pytest
import yaml

from dino_x.cli import main
from tests.training.runs import metrics, pretrain, weights

QUICK = ("--effective-batch", 8, "--micro-batch", 8, "--centering", "sinkhorn")


@pytest.fixture
def run(films, tmp_path):
    """A finished run of three steps."""
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, "--steps", 3, optim__warmup=1) == 0
    return out


def rates(run):
    return [step["lr"] for step in metrics(run)]


def test_a_finished_run_is_made_longer_on_the_schedules_of_its_new_length(run, films, tmp_path):
    three = rates(run)
    assert main(["pretrain", "--out", str(run), "--resume", "--steps", "6"]) == 0
    whole = tmp_path / "whole"
    assert pretrain(films, whole, *QUICK, "--steps", 6, optim__warmup=1) == 0
    assert rates(run) == three + rates(whole)[3:]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"] == 6
    facts = json.loads((run / "facts.json").read_text())
    assert facts["lengthened"] == [{"after": 3, "from": 3, "to": 6}]
    before = weights(run, 6)
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0  # it is of six steps now
    assert {name: value.tolist() for name, value in weights(run, 6).items()} == {
        name: value.tolist() for name, value in before.items()
    }


def test_a_run_is_not_made_shorter(run, capsys):
    assert main(["pretrain", "--out", str(run), "--resume", "--steps", "2"]) == 2
    assert "train.steps: 3 then, 2 now" in capsys.readouterr().err
    assert len(metrics(run)) == 3


def test_data_that_have_moved_are_recognised(films, run, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(films, moved)
    command = ["pretrain", "--out", run, "--resume", "--steps", 4, "--data", moved]
    assert main([str(word) for word in command]) == 0
    assert len(metrics(run)) == 4


def test_other_images_of_the_same_names_and_sizes_are_refused(films, run, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(films, moved)
    files = sorted(path for path in moved.rglob("*") if path.is_file())
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].write_bytes(second)
    files[1].write_bytes(second)
    assert first != second
    command = ["pretrain", "--out", run, "--resume", "--steps", 4, "--data", moved]
    status = main([str(word) for word in command])
    assert status == 2
    assert "images are not those" in (said := capsys.readouterr().err) or "hold something" in said
    assert len(metrics(run)) == 3


def test_a_relative_path_works_from_elsewhere(films, tmp_path, monkeypatch):
    monkeypatch.chdir(films.parent)
    out = tmp_path / "run"
    assert pretrain(films.name, out, *QUICK, "--steps", 2) == 0
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists(films.name)
    assert main(["pretrain", "--out", str(out), "--resume", "--steps", "3"]) == 0
    assert len(metrics(out)) == 3


def test_steps_that_are_no_number_are_one_line(run, capsys):
    assert main(["pretrain", "--out", str(run), "--resume", "--set", "train.steps=many"]) == 2
    assert "train.steps" in capsys.readouterr().err
