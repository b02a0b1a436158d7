"""Two processes never write into one run; an owner that was killed blocks nobody."""

import json
import os
import subprocess
import sys
import time

import pytest

from dino_x.cli import main
from dino_x.errors import UserError
from dino_x.runs import lock as lock_module
from dino_x.runs.lock import RunLock
from tests.training.runs import metrics, pretrain

QUICK = ("--effective-batch", 8, "--micro-batch", 8, "--centering", "sinkhorn")


def held_by_a_child(folder):
    """A process that takes the lock and waits."""
    code = (
        "import sys, time; from pathlib import Path; from dino_x.runs.lock import RunLock;"
        f"RunLock(Path({str(folder)!r})).take(); print('taken', flush=True); time.sleep(100)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "taken\n"
    return child


def test_a_second_process_is_refused_and_told_who_and_since_when(films, tmp_path, capsys):
    out = tmp_path / "run"
    assert pretrain(films, out, *QUICK, "--steps", 2) == 0
    assert not (out / "lock").exists()
    child = held_by_a_child(out)
    try:
        capsys.readouterr()
        assert main(["pretrain", "--out", str(out), "--resume", "--steps", "3"]) == 2
        said = capsys.readouterr().err
        assert f"is in use by process {child.pid}" in said
        assert "since 20" in said
        evaluate = ["evaluate", "--model", str(out), "--data", str(films), "--labels", "folder"]
        assert main([*evaluate, "--out", str(out / "evaluation.json")]) == 2
        assert "is in use" in capsys.readouterr().err
        assert len(metrics(out)) == 2
    finally:
        child.kill()
        child.wait()
    assert main(["pretrain", "--out", str(out), "--resume", "--steps", "3"]) == 0
    assert len(metrics(out)) == 3
    assert not (out / "lock").exists()


def test_a_new_run_does_not_go_into_a_folder_that_is_being_written(films, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    child = held_by_a_child(out)
    try:
        assert pretrain(films, out, *QUICK, "--steps", 2) == 2
        assert "is in use by" in capsys.readouterr().err
    finally:
        child.kill()
        child.wait()
    assert pretrain(films, out, *QUICK, "--steps", 2) == 0


def test_of_another_machine_a_lock_counts_until_it_is_no_longer_touched(tmp_path):
    said = {"machine": "elsewhere", "process": 1, "since": "2020-01-01 00:00:00", "place": "x"}
    (tmp_path / "lock").write_text(json.dumps(said))
    lock = RunLock(tmp_path)
    with pytest.raises(UserError, match="process 1 on elsewhere, since 2020"):
        lock.take()
    old = time.time() - lock_module.GONE_AFTER - 1
    os.utime(tmp_path / "lock", (old, old))
    lock.take()
    assert lock.holder().process == os.getpid()
    lock.release()
    assert not (tmp_path / "lock").exists()


def test_a_number_that_a_later_process_has_is_not_the_owner(tmp_path):
    said = lock_module._self() | {"started": "1"}
    (tmp_path / "lock").write_text(json.dumps(said))
    RunLock(tmp_path).take()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"process": "x"}', "\x00"])
def test_a_damaged_lock_is_left_over_once_it_is_old(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with pytest.raises(UserError, match="another process"):
        RunLock(tmp_path).take()
    os.utime(tmp_path / "lock", (1, 1))
    RunLock(tmp_path).take()


def test_an_owner_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "TOUCHED_EVERY", 0.05)
    lock = RunLock(tmp_path)
    lock.take()
    lock.take()
    os.utime(tmp_path / "lock", (1, 1))
    deadline = time.monotonic() + 5
    while (tmp_path / "lock").stat().st_mtime < 100 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / "lock").stat().st_mtime > 100
    lock.release()


def test_an_evaluation_looks_at_its_output_before_it_works(films, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dino_x.evaluation.suite.evaluate", lambda *_, **__: pytest.fail("worked"))
    evaluate = ["evaluate", "--model", "x", "--data", str(films), "--labels", "folder", "--out"]
    for place, told in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.json", "no folder")):
        assert main([*evaluate, str(place)]) == 2
        assert told in capsys.readouterr().err
