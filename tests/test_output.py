"""What a command prints to may come to an end: nothing that it makes is lost by that."""

import io
import os
import subprocess
import sys

import pytest

from dino_x.terminal import Output, Terminal
from tests.conftest import tiny_settings
from tests.training.runs import metrics

LINUX = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "dino_x.cli", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_a_reader_that_has_gone_is_no_fault(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = command("options", stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == ""
    assert process.returncode == 0


@LINUX
def test_a_full_disk_behind_the_output_is_one_line_after_the_work(tmp_path):
    made = tmp_path / "p.json"
    with open("/dev/full", "w") as full:
        process = command("plan", "--images", 9, "--no-measure", "--json", made, stdout=full)
        (line,) = process.communicate()[1].splitlines()
    assert "what it printed could not be written (No space left on device)" in line
    assert process.returncode == 2
    assert made.stat().st_size > 100


def test_output_that_was_closed_before_the_start(tmp_path):
    made = tmp_path / "p.json"
    arguments = ("plan", "--images", 9, "--no-measure", "--json", made)
    process = command(*arguments, preexec_fn=lambda: os.close(1))
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert made.stat().st_size > 100


@pytest.mark.slow
def test_a_run_whose_reader_goes_trains_to_its_end(films, tmp_path):
    run = tmp_path / "run"
    settings = tiny_settings(views__local_crops=0, report__page=False, online__every=0)
    process = command(
        "pretrain", "--data", films, "--out", run, "--effective-batch", 4, "--micro-batch", 4,
        "--steps", 5, *settings, stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert len(metrics(run)) == 5
    assert (run / "model" / "model.safetensors").is_file()


def test_what_follows_the_end_goes_nowhere():
    reading, writing = os.pipe()
    output = Output(writing)
    file = io.TextIOWrapper(io.BufferedWriter(output), write_through=True)
    console = Terminal(file=file)
    console.print("one")
    file.flush()
    assert os.read(reading, 99) == b"one\n"
    os.close(reading)
    for _ in range(3):
        console.print("two")
        file.flush()
    assert output.lost == ""  # nobody would have read it
    os.close(writing)
