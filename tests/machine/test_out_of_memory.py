"""Memory that runs out in a step: one line that names the micro-batch that fits, nothing lost."""

import os
import re
import subprocess
import sys

import pytest
import torch

from dino_x.machine.out_of_memory import OutOfMemory, asked_for, caught, is_out_of_memory
from dino_x.training import build, rescue
from dino_x.training.steps import Steps
from tests.conftest import tiny_settings
from tests.training.runs import losses, metrics, pretrain, weights

CPU_ERROR = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 1073741824 bytes. Error code 12"
)
ERRORS = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has"),
    "a CPU": RuntimeError(CPU_ERROR),
    "NumPy": MemoryError("Unable to allocate 2.00 GiB for an array with shape (9,)"),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_library_is_understood(name):
    assert is_out_of_memory(ERRORS[name])


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("DefaultCPUAllocator"), OSError(28, "full")]
)
def test_other_errors_stay_what_they_are(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error), match=str(error).split("]")[-1].strip()), caught():
        raise error


def test_how_much_was_asked_for_is_kept():
    found = [asked_for(error) for error in ERRORS.values()]
    assert found == [
        "tried to allocate 1.50 GiB", "tried to allocate 1073741824 bytes",
        "allocate 2.00 GiB for an array with shape (9,)", "std::bad_alloc",
    ]  # fmt: skip


def test_what_filled_the_memory_is_let_go():
    """The error's frames hold the activations; they must be gone before something else is tried."""
    import gc
    import weakref

    class Large:
        pass

    held = []

    def step():
        large = Large()
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("Tried to allocate 1 GiB")

    message = None
    try:
        with caught():
            step()
    except OutOfMemory as error:
        message = str(error)
    gc.collect()
    assert message == "tried to allocate 1 GiB"
    assert held[0]() is None


def test_it_is_let_go_before_what_fits_is_tried(films, tmp_path, monkeypatch):
    """While the error is still on its way, through the frames that hold it."""
    import gc
    import weakref

    class Large:
        pass

    held, there = [], []
    line_of = rescue.line_of

    def looking(*arguments):
        gc.collect()
        there.append(held[0]() is not None)
        return line_of(*arguments)

    def fault(where, micro):
        large = Large()
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("Tried to allocate 1 GiB")

    monkeypatch.setattr(rescue, "line_of", looking)
    monkeypatch.setattr(build, "no_fault", fault)
    assert pretrain(films, tmp_path / "run", *FLAGS, "--micro-batch", 8) == 2
    assert there == [False]


FLAGS = ("--effective-batch", 8, "--steps", 4, "--set", "checkpoint.every=1")


@pytest.fixture
def refused(capsys):
    def check(status):
        captured = capsys.readouterr()
        assert status == 2, captured.out
        (line,) = captured.err.strip().splitlines()
        return line

    return check


def break_from_step(monkeypatch, error, where, step):
    """Memory runs out in a part of a step, or in its update, from a step on.

    Not in micro-batches of 2 images or fewer.
    """
    room = {"size": 8}

    def fault(place, micro):
        if place == where and micro.plan.step >= step and room["size"] > 2:
            raise error

    def updated(self, number, *arguments):
        if where == "update" and number >= step and room["size"] > 2:
            raise error
        return update(self, number, *arguments)

    update = Steps.update
    monkeypatch.setattr(build, "no_fault", fault)
    monkeypatch.setattr(Steps, "update", updated)
    return room


@pytest.mark.parametrize(
    ("name", "where"),
    [("a GPU", "student"), ("a CPU", "student"), ("NumPy", "teacher"), ("C++", "update")],
)
def test_one_line_names_what_fits_and_the_run_goes_on(
    films, tmp_path, refused, monkeypatch, name, where
):
    run = tmp_path / "run"
    room = break_from_step(monkeypatch, ERRORS[name], where, 2)
    line = refused(pretrain(films, run, *FLAGS, "--micro-batch", 8))
    expected = (
        r"dino-x: out of memory in step 3 with a micro-batch of 8 \(.*\); 4 fits by calculation;"
        r" the last good checkpoint is .*step-00000002.pt; continue with --resume --micro-batch 4,"
        r" which changes nothing about the result"
    )
    assert re.fullmatch(expected, line), line
    room["size"] = 2
    flags = line.split("continue with ")[1].split(",")[0].split()
    assert pretrain(films, run, *FLAGS, *flags) == 0
    assert [step["step"] for step in metrics(run)] == [1, 2, 3, 4]


def test_the_result_is_that_of_a_run_with_memory(films, tmp_path, refused, monkeypatch):
    flags = (*FLAGS, "--precision", "fp64")
    assert pretrain(films, tmp_path / "plain", *flags, "--micro-batch", 8) == 0
    with monkeypatch.context() as broken:
        break_from_step(broken, ERRORS["a CPU"], "student", 2)
        refused(pretrain(films, tmp_path / "run", *flags, "--micro-batch", 8))
    assert pretrain(films, tmp_path / "run", *flags, "--resume", "--micro-batch", 4) == 0
    torch.testing.assert_close(
        losses(tmp_path / "run"), losses(tmp_path / "plain"), rtol=1e-8, atol=0
    )
    plain = weights(tmp_path / "plain", 4)
    for name, value in weights(tmp_path / "run", 4).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-8, atol=1e-10)


def test_where_not_even_one_image_fits_it_says_what_helps(films, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(rescue, "free_bytes", lambda device: 1000.0)
    break_from_step(monkeypatch, ERRORS["a CPU"], "student", 0)
    line = refused(pretrain(films, tmp_path / "run", *FLAGS, "--micro-batch", 8))
    assert "not even 1 fits" in line
    assert "in a new run, try " in line
    assert "no checkpoint was made yet" in line
    assert "--micro-batch" not in line


LIMITED = """
import resource, sys
import torch
from dino_x.cli import main, prepare_libraries
import dino_x.commands.pretrain, dino_x.report.write
torch.set_num_threads(1)
pages = int(open("/proc/self/statm").read().split()[0])
room = int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
sys.exit(main(sys.argv[2:]))
"""


def limited(megabytes, *arguments):
    """The command in a process whose address space really ends."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(megabytes), *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip


def test_with_an_address_space_that_really_ends(films, tmp_path):
    """Tensors of a micro-batch of 16 alone take more; what the line names then runs."""
    many_tokens = {
        "model__depth": 8, "model__patch_size": 4, "views__global_size": 96,
        "views__local_size": 48, "online__every": 0, "report__snapshots": False,
        "data__workers": 1, "data__cache_mb": 1,
    }  # fmt: skip
    run = tmp_path / "run"
    command = ["pretrain", "--data", films, "--out", run, "--effective-batch", 16, "--steps", 1]
    command += tiny_settings(**many_tokens)
    found = limited(320, *command, "--micro-batch", 16)
    assert found.returncode == 2, found.stderr[-3000:]
    (line,) = found.stderr.strip().splitlines()
    assert re.match(r"dino-x: out of memory in step 1 with a micro-batch of 16 \(", line), line
    flags = line.split("continue with ")[1].split(",")[0].split()
    assert flags[:2] == ["--resume", "--micro-batch"]
    assert int(flags[2]) > 1
    again = limited(320, *command, *flags)
    assert again.returncode == 0, again.stderr[-3000:]
    assert len(metrics(run)) == 1
