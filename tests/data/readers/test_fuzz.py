"""Damaged files: an image or a reason, and no crash, no hang and no flood of memory."""

import signal

import numpy as np
import pytest

from tests.data.readers.fuzzing import BOMBS, mutants
from tests.data.watched import BYTES, SECONDS, Watched

FILES = 300


@pytest.fixture(scope="module")
def reader():
    watched = Watched()
    yield watched
    watched.close()


def test_damaged_files_are_read_or_refused(reader, tmp_path):
    """`benchmarks/fuzz_readers.py` does the same with thousands."""
    bad, outcomes = [], []
    for name, content in mutants(FILES):
        path = tmp_path / name
        path.write_bytes(content)
        outcome = reader.read(path)
        outcomes.append(outcome.kind)
        if not outcome.is_good:
            bad.append((name, outcome))
    assert not bad
    assert len(outcomes) == FILES
    assert 0.2 < np.mean([word == "image" for word in outcomes]) < 0.8, "too mild or too wild"


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(reader, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BOMBS[name]())
    outcome = reader.read(path)
    assert outcome.is_good, outcome
    assert (outcome.kind == "image") == name.startswith("allowed")
    assert outcome.seconds < SECONDS
    assert outcome.growth < (BYTES if name.startswith("allowed") else BYTES / 4)


def test_a_crash_and_a_hang_are_seen(reader, tmp_path, monkeypatch):
    """What the tests above rest on."""
    from tests.data import watched

    process = reader._running()
    process.kill()
    assert not reader.read(tmp_path / "a").is_good
    reader._running().send_signal(signal.SIGSTOP)  # it will not answer
    monkeypatch.setattr(watched, "_PATIENCE", 0.1)
    assert reader.read(tmp_path / "a").kind == "hang"
