"""What a run keeps of what it said and of what it was started with."""

import json
import re
import subprocess

import pytest
from rich.table import Table

from dino_x.cli import main
from dino_x.runs.environment import commit, in_a_line, starts
from dino_x.runs.train_log import TrainLog
from dino_x.terminal import Terminal
from dino_x.version import __version__
from tests.training.runs import pretrain

RUN = ("--effective-batch", 4, "--micro-batch", 2, "--steps", 2, "--centering", "sinkhorn")


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """A run of two steps that was resumed for two more, and once in vain."""
    out = tmp_path_factory.mktemp("records") / "run"
    assert pretrain(films, out, *RUN) == 0
    assert pretrain(films, out, "--resume", "--steps", 4) == 0
    assert pretrain(films, out, "--resume", "--effective-batch", 8) == 2
    return out


def test_the_log_has_what_was_said_of_all_starts_with_the_time(run):
    lines = (run / "train.log").read_text().splitlines()
    said = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  (.+)", line)[1] for line in lines]
    assert sum(line.startswith("images    40") for line in said) == 2
    steps = [line.split("  ")[0] for line in said if line.startswith("step ")]
    assert steps == ["step 2/2", "step 4/4"]
    assert "resumed   after step 2" in said
    assert sum(line.startswith("model     ") for line in said) == 4  # announced, and at the end
    assert not any("other settings" in line for line in said)  # that start took no part in the run


def test_the_environment_has_each_start(run):
    found = starts(run / "environment.json")
    assert len(found) == 2
    for one in found:
        assert one["dino_x"] == __version__
        assert {"torch", "numpy", "pydicom"} <= one["packages"].keys()
        assert one["host"]
        assert one["command"]
        assert one["device"].startswith("CPU")
        assert one["processes"] == 1
    assert found[0]["started"] <= found[1]["started"]


def test_page_and_card_have_a_line_of_it_without_host_and_paths(run, tmp_path):
    first = starts(run / "environment.json")[0]
    line = in_a_line(run / "environment.json")
    assert f"dino-x {__version__}" in line
    assert f"PyTorch {first['packages']['torch']}" in line
    assert line.endswith("the last of 2 starts")
    assert first["host"] not in line
    assert "/" not in line
    assert main(["report", str(run), "--out", str(tmp_path / "r.html")]) == 0
    assert line in (tmp_path / "r.html").read_text()
    assert main(["export", str(run), "--to", str(tmp_path / "x"), "--format", "transformers"]) == 0
    card = (tmp_path / "x" / "README.md").read_text()
    assert f"Trained with {line}." in card
    assert first["host"] not in card


def test_a_file_that_is_damaged_costs_nothing(tmp_path):
    file = tmp_path / "environment.json"
    for content in ("{", "[]", '{"starts": 3}', '{"starts": [1]}', json.dumps({})):
        file.write_text(content)
        assert starts(file) == []
        assert in_a_line(file) == ""


def test_the_commit_is_that_of_the_code_and_says_of_changes(tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y.z"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    assert commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "other.py").touch()
    git("add", ".")
    git("commit", "-qm", "x")
    assert commit(tmp_path) is None  # this repository is of something else
    (tmp_path / "environment.py").touch()
    git("add", ".")
    git("commit", "-qm", "y")
    found = commit(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", found)
    (tmp_path / "environment.py").write_text("changed")
    assert commit(tmp_path) == f"{found}+changes"


def test_what_was_said_before_there_is_a_folder_is_kept_and_no_colour(tmp_path):
    log, terminal = TrainLog(tmp_path / "run" / "train.log"), Terminal(quiet=True)
    log.listen(terminal)
    terminal.print("reading\x1b[31m", style="yellow")
    assert not (tmp_path / "run").exists()
    log.begin()
    table = Table("name", "value")
    table.add_row("kNN", "0.9")
    terminal.print(table)
    log.close()
    terminal.print("later")
    text = (tmp_path / "run" / "train.log").read_text()
    assert "reading\\x1b[31m\n" in text
    assert "kNN" in text
    assert "\x1b" not in text
    assert "later" not in text
