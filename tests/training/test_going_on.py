"""Going on: for longer, with data that have moved, from another folder."""

import json
import os
import shutil

import pytest
import torch
import yaml

from dino_x import load
from dino_x.cli import main
from dino_x.runs.folder import RunFolder
from dino_x.runs.going_on import saved_settings
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


def test_a_run_from_before_an_option_goes_on_as_it_did(tmp_path):
    """Patients of tables would change its batches."""
    folder = RunFolder(tmp_path)
    folder.settings_file.write_text("data:\n  paths: [films]\n")
    assert saved_settings(folder, {})["data.label_patients"] is False
    folder.settings_file.write_text("data:\n  paths: [films]\n  label_patients: true\n")
    assert saved_settings(folder, {})["data.label_patients"] is True


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


def test_each_checkpoint_of_a_run_is_a_model(films, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, "--steps", 3, checkpoint__every=1, checkpoint__keep=3) == 0
    first = load(f"{out}@step-1").network
    for which, name in (("teacher", "1"), ("student", "1-student")):
        own = {
            key.removeprefix(f".{which}.backbone.vit."): value
            for key, value in weights(out, 1).items()
            if key.startswith(f".{which}.backbone.vit.")
        }
        found = load(f"{out}@step-{name}").network.state_dict()
        assert own.keys() == found.keys()
        assert all(torch.equal(own[key], found[key]) for key in own)
    last = load(out).network.state_dict()
    assert any(not torch.equal(value, last[key]) for key, value in first.state_dict().items())

    to = tmp_path / "student"
    export = ["export", str(out), "--to", str(to), "--format", "transformers"]
    assert main([*export, "--which", "student", "--step", "2"]) == 0
    exported = load(to).network.state_dict()
    card = (to / "README.md").read_text()
    assert "dino-x export run --to student --format transformers --step 2 --which student" in card
    assert str(tmp_path) not in card
    own = load(f"{out}@step-2-student").network.state_dict()
    assert all(torch.equal(own[key], exported[key]) for key in own)

    again = tmp_path / "continued"
    command = ["pretrain", "--data", films, "--out", again, "--model", f"{out}@step-1", *QUICK]
    command += ["--steps", 1, "--set", "views.local_crops=0"]
    assert main([str(word) for word in command]) == 0
    capsys.readouterr()
    evaluate = ["evaluate", "--model", f"{out}@step-9", "--data", str(films), "--labels", "folder"]
    assert main(evaluate) == 2
    assert "no checkpoint of step 9; there are: 1, 2, 3" in capsys.readouterr().err
    assert main([*export[:2], "--to", str(tmp_path / "x"), *export[4:], "--step", "9"]) == 2


def test_images_that_are_smaller_than_the_crops_are_said(films, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, "--steps", 1, views__global_size=64) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "images are smaller than the crops of 64 px" in said
    assert pretrain(films, tmp_path / "other", *QUICK, "--steps", 1, views__global_size=32) == 0
    assert "smaller than the crops" not in capsys.readouterr().out


def test_labels_that_hold_out_other_images_are_named(run, films, tmp_path, capsys):
    capsys.readouterr()
    assert main(["pretrain", "--out", str(run), "--resume", "--labels", "folder"]) == 2
    said = capsys.readouterr().err
    assert "data.labels is folder now and was None when" in said
    assert "name labels with dino-x evaluate" in said
    assert said.count("\n") == 1
