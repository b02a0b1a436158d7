"""A run that is killed at 50 random moments ends as the one that never was, bit for bit."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.training import killed_often
from tests.training.runs import losses, weights

pytestmark = pytest.mark.slow

KILLS, SEED = 50, 3


@pytest.fixture(scope="module")
def folder(films):
    """Both runs, and what was found after each kill."""
    memory = Path("/dev/shm")  # a kill is no different there, and the test quicker
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="dino-x-test-", dir=where) as name:
        command = [sys.executable, "-m", killed_often.__name__, films, name, str(KILLS), str(SEED)]
        # That each checkpoint is whole after each kill is checked there.
        subprocess.run(command, check=True, timeout=500, cwd=Path(__file__).parents[2])
        yield Path(name)


@pytest.fixture(scope="module")
def happened(folder):
    return json.loads((folder / "attempts.json").read_text())


def test_it_was_killed_that_often_at_moments_of_all_kinds(happened):
    attempts = happened["attempts"]
    assert [attempt["status"] for attempt in attempts] == [-9] * KILLS
    assert happened["last"]["status"] == 0
    in_checkpoint = [a for a in attempts if any(n.endswith(".pt.partial") for n in a["partial"])]
    assert len(in_checkpoint) >= 8, "kills while a checkpoint was written"
    newest = [attempt["newest"] or 0 for attempt in attempts]
    assert newest == sorted(newest), "no checkpoint is ever lost"
    assert newest[-1] < killed_often.STEPS, "the last kill was one too"


def test_it_ends_bit_for_bit_as_the_run_that_was_never_killed(folder):
    whole, killed = (weights(folder / name, killed_often.STEPS) for name in ("whole", "killed"))
    parts = {name.split(".")[1] for name in whole}
    assert parts >= {"student", "teacher", "optimizer", "centers", "queues"}
    assert killed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name
    assert losses(folder / "killed") == losses(folder / "whole")


def test_nothing_half_written_is_left(folder):
    def files(run):
        return {
            str(path.relative_to(run)) for path in run.rglob("*") if "tfevents" not in path.name
        }

    assert files(folder / "killed") == files(folder / "whole")
