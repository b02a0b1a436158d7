"""Run by test_killed.py: a run that is killed many times, and one that never is.

python -m tests.training.killed_often FILMS FOLDER KILLS SEED

What takes seconds, importing, is done once; each attempt is a fork of this process. What happened
goes to FOLDER/attempts.json.
"""

import importlib
import io
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from dino_x.cli import main
from dino_x.runs import checkpoint
from dino_x.training.steps import Steps
from tests.conftest import tiny_settings

STEPS = 90  # more than are done between so many kills
LIVES = 3  # steps between the start and a kill, at most
IN_START = 0.2  # share of the kills before the first step of an attempt
IN_WRITE = 0.3  # share of those while a checkpoint is written, slowly
PIECES, PAUSE = 8, 0.005  # of a slow write: pieces, and seconds after each
FLAGS = ("--effective-batch", "4", "--micro-batch", "4", "--steps", str(STEPS), "--resume")
SETTINGS = {
    "checkpoint__every": 2, "views__local_crops": 1, "data__verify": "headers", "online__every": 0,
    "loss__centering": "sinkhorn", "loss__queue": 16, "report__snapshots": "false",
    "data__workers": 1,
}  # fmt: skip


def fork(work):
    """A child that does some work; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    return child


def ended(child):
    """The exit status of a child; negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(films, out):
    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        arguments = ["pretrain", "--data", films, "--out", str(out), *FLAGS]
        return main([*arguments, *tiny_settings(**SETTINGS)])


def begun(pipe):
    """Have this process write to a pipe when its first step begins."""
    gradients = Steps.gradients

    def first(self, *arguments):
        os.write(pipe, b"!")
        Steps.gradients = gradients
        return gradients(self, *arguments)

    Steps.gradients = first


def written_slowly(pipe):
    """Have `torch.save` take its time, and write to a pipe when it begins."""
    save = torch.save

    def slowly(state, path):
        content = io.BytesIO()
        save(state, content)
        piece = -(-len(content.getvalue()) // PIECES)
        with open(path, "wb", buffering=0) as file:
            os.write(pipe, b"!")
            for start in range(0, len(content.getvalue()), piece):
                file.write(content.getbuffer()[start : start + piece])
                time.sleep(PAUSE)

    torch.save = slowly


def attempt(films, out, kind="", seconds=0.0):
    """One start; its status and times.

    It is killed some seconds after it was started ("start"), its first step began ("step") or a
    checkpoint began to be written ("write").
    """
    reading, writing = os.pipe()

    def work():
        if kind == "write":
            written_slowly(writing)
        else:
            begun(writing)
        return train(films, out)

    before = time.monotonic()
    child = fork(work)
    os.close(writing)
    if not kind:
        os.read(reading, 1)
        start = time.monotonic() - before
        status = ended(child)
    else:
        if kind != "start":
            os.read(reading, 1)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        status, start = ended(child), 0.0
    os.close(reading)
    return status, start, time.monotonic() - before


def import_what_a_run_imports(films, out):
    """So that no attempt has to."""
    names = out.with_name("modules.json")

    def work():
        status = train(films, out)
        names.write_text(json.dumps(sorted(sys.modules)))
        return status

    global STEPS, FLAGS
    steps, FLAGS = FLAGS, (*FLAGS[:5], "1", "--resume")
    assert ended(fork(work)) == 0
    FLAGS = steps
    for name in json.loads(names.read_text()):
        if name.startswith(("dino_x.", "transformers.", "torch.", "tensorboard.", "PIL.")):
            importlib.import_module(name)


def found(out):
    """What is in the folder after a kill: the newest step, and what was being written."""
    newest = None
    for path in checkpoint.checkpoints(out / "checkpoints"):
        newest = checkpoint.load(path, torch.device("cpu"))["step"]  # raises if it is damaged
    partial = sorted(str(path.relative_to(out)) for path in out.rglob("*.partial"))
    return {"newest": newest, "partial": partial}


def kill_often(films, folder, kills, seed):
    draw = random.Random(seed)
    import_what_a_run_imports(films, folder / "first")
    status, start, seconds = attempt(films, folder / "whole")
    assert status == 0, "the run that is never killed"
    step = (seconds - start) / STEPS
    attempts, before = [], 0
    for _ in range(kills):
        until = {"start": start, "write": PIECES * PAUSE, "step": LIVES * step}
        shares = (IN_START, IN_WRITE, 1 - IN_START - IN_WRITE)
        (kind,) = draw.choices(list(until), shares)
        status, _, _ = attempt(films, folder / "killed", kind, draw.uniform(0, until[kind]))
        attempts.append({"status": status, "kind": kind, **found(folder / "killed")})
        newest = attempts[-1]["newest"] or 0
        if newest - before > LIVES:  # the machine is quicker than when it was timed
            step *= LIVES / (newest - before)
        before = newest
    status, _, _ = attempt(films, folder / "killed")
    last = {"status": status, **found(folder / "killed")}
    result = {"attempts": attempts, "last": last, "start": start, "step": step}
    (folder / "attempts.json").write_text(json.dumps(result))


if __name__ == "__main__":
    films, folder, kills, seed = sys.argv[1:]
    torch.set_num_threads(1)
    kill_often(films, Path(folder), int(kills), int(seed))
