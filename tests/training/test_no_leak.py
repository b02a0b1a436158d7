"""What a run was trained on is known later, and what it held out stays held out."""

import json
import shutil

import pytest

from dino_x.cli import main
from dino_x.evaluation.seen import trained_on
from dino_x.runs.folder import RunFolder
from dino_x.runs.trained_on import kept_keys, kept_split
from tests.evaluation.conftest import write_csv, write_image
from tests.training.runs import pretrain

QUICK = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 2, "--centering", "sinkhorn")
COUNT = 48


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """48 different images in two classes, with a table of them."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(COUNT):
        label = "ill" if number % 2 else "well"
        write_image(folder / f"{number:02d}.png", number, bright=label == "ill")
        rows.append({"path": f"{number:02d}.png", "label": label, "site": str(number % 3)})
    write_csv(folder / "labels.csv", rows)
    return folder


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A run that held out the tested images of a split that it made."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert pretrain(images, out, *QUICK, "--labels", images / "labels.csv") == 0
    return out


def evaluated(run, images, tmp_path, *flags):
    """The JSON of an evaluation."""
    out = tmp_path / "evaluation.json"
    command = ["evaluate", "--model", run, "--data", images, "--labels", images / "labels.csv"]
    command += ["--tasks", "knn", "--out", out, *flags]
    assert main([str(word) for word in command]) == 0
    return json.loads(out.read_text())


def test_a_run_keeps_the_split_that_it_made_and_keys_of_what_it_trained_on(run):
    split = kept_split(RunFolder(run))
    assert len(split) == COUNT
    assert len(kept_keys(RunFolder(run))) == sum(side == "train" for side in split.values())


def test_held_out_images_are_not_counted_as_seen(run, images, tmp_path):
    result = evaluated(run, images, tmp_path)
    assert result["seen"]["model"] == {"tested": 14, "trained_on": 0}
    assert not any("too good" in warning for warning in result["warnings"])


def test_the_end_of_a_run_tests_just_what_it_held_out(run):
    result = json.loads((run / "evaluation.json").read_text())
    assert result["seen"]["model"] == {"tested": 14, "trained_on": 0}


def test_images_that_were_trained_on_and_their_copies_are_counted(images, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain(images, out, *QUICK) == 0  # without labels, all 48 are trained on
    other = tmp_path / "other"
    rows = []
    for number in range(20):
        label = "ill" if number % 2 else "well"
        if number in (12, 15, 16):  # copies under other names
            shutil.copy(images / f"{number:02d}.png", tmp_path / "copy.png")
            other.mkdir(exist_ok=True)
            shutil.move(tmp_path / "copy.png", other / f"x{number}.png")
        else:
            write_image(other / f"x{number}.png", 1000 + number, bright=label == "ill")
        side = "test" if number >= 10 else "train"
        rows.append({"path": f"x{number}.png", "label": label, "split": side})
    write_csv(other / "labels.csv", rows)
    capsys.readouterr()
    result = evaluated(out, other, tmp_path)
    assert result["seen"]["model"] == {"tested": 10, "trained_on": 3}
    said = " ".join(capsys.readouterr().out.split())
    assert "the model was trained on 3 of the 10 tested images" in said
    assert "model *" in said


def test_what_a_run_began_from_counts_too(run, images, tmp_path):
    out = tmp_path / "continued"
    few = tmp_path / "few"
    for number in range(12):
        write_image(few / f"{number}.png", 500 + number)
    command = ["pretrain", "--data", few, "--out", out, "--model", run, *QUICK]
    command += ["--set", "views.local_crops=0", "checkpoint.every=1"]
    assert main([str(word) for word in command]) == 0
    assert trained_on(out) > trained_on(run)
    assert trained_on(out / "model") == trained_on(out)


def test_a_split_is_kept_when_images_are_added(run, images, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(images, more)
    rows = (more / "labels.csv").read_text()
    for number in range(100, 120):
        write_image(more / f"{number}.png", number, bright=bool(number % 2))
        rows += f"{number}.png,{'ill' if number % 2 else 'well'},0\n"
    (more / "labels.csv").write_text(rows)
    result = evaluated(run, more, tmp_path)
    assert result["seen"]["model"] == {"tested": 20, "trained_on": 0}


def test_a_condition_holds_for_the_evaluation_as_for_training(images, tmp_path):
    out, table = tmp_path / "run", tmp_path / "index.parquet"
    command = ["index", images, "--out", table, "--labels", images / "labels.csv"]
    assert main([str(word) for word in command]) == 0
    flags = ("--labels", images / "labels.csv", "--where", 'width == 56 and path < "40"')
    assert pretrain(images, out, *QUICK, *flags, "--index", table) == 0
    counts = json.loads((out / "evaluation.json").read_text())["counts"]
    assert sum(sum(side.values()) for side in counts.values()) == 40
    result = evaluated(out, images, tmp_path, "--where", 'path < "40"', "--index", table)
    assert sum(sum(side.values()) for side in result["counts"].values()) == 40


@pytest.mark.parametrize("damage", [b"x" * 17, b"PK\x03\x04"])
def test_keys_that_cannot_be_read_are_as_if_there_were_none(run, images, tmp_path, damage):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "trained_on.keys").write_bytes(damage)
    assert evaluated(copy, images, tmp_path)["seen"] == {}


def test_where_nobody_kept_what_was_trained_on_that_is_said(run, images, tmp_path):
    said = "trained on is not known"
    result = evaluated(run, images, tmp_path)
    assert not any(said in warning for warning in result["warnings"])
    assert main(["export", str(run), "--to", str(tmp_path / "to"), "--format", "transformers"]) == 0
    result = evaluated(tmp_path / "to", images, tmp_path, "--against", run)
    told = [warning for warning in result["warnings"] if said in warning]
    assert told == [
        "which images the model was trained on is not known: if tested ones are among them, its"
        " figures are too good"
    ]
