"""Decoding in processes of their own: the same pixels, and a crash costs an image."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.image import Unreadable
from dino_x.data.index import index as index_module
from dino_x.data.index.index import build_index
from dino_x.data.loading import loader
from dino_x.data.loading.loader import Loader
from dino_x.data.readers import decoding
from dino_x.data.readers.decoding import DIED, Decoding, InProcesses
from dino_x.demo import demo_folder
from dino_x.errors import UserError
from tests.training.runs import losses, pretrain

DEADLY, ONCE = b"deadly", b"once"  # what a file ends with that ends who decodes it
true_decoded = loader.decoded


def die(how):
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSEGV)


def die_of(path):
    """End this process if the file says so; of one that says once, the first time."""
    end = path.read_bytes()[-10:]
    if end.endswith(DEADLY):
        die("segfault")
    if end.endswith(ONCE):
        path.write_bytes(path.read_bytes()[: -len(ONCE)])
        die("killed")


def decoded(refs, form):
    for ref in refs:
        die_of(ref.path)
    return true_decoded(refs, form)


def decode(row):
    """In the place of a look at a whole image: whether it holds a finite value."""
    die_of(row.path)
    return True


def cannot_start():
    os._exit(3)


def add(path, end):
    path.write_bytes(path.read_bytes() + end)


@pytest.fixture
def processes():
    with InProcesses() as found:
        yield found


@pytest.fixture
def index(write_png, tmp_path):
    for number in range(12):
        write_png(f"{number:02}.png", number, shape=(10 + number, 14))
    return build_index([tmp_path])


def loaded(index, form, where, rows):
    with Loader(index, form, cache_bytes=0, workers=3, decoding=where) as found:
        canvases = found.batch(rows)
    return canvases, [(skip.path.name, skip.reason) for skip in found.skipped]


@pytest.mark.parametrize("slices", [1, 3])
def test_pixels_are_the_same_bit_for_bit(slices):
    index = build_index([demo_folder() / "mri"], verify="headers")
    form, rows = CanvasForm(48, slices, slices), np.arange(len(index))
    (by_threads, _), (by_processes, _) = (
        loaded(index, form, where, rows) for where in (Decoding(), InProcesses())
    )
    assert torch.equal(by_processes.pixels, by_threads.pixels)
    assert torch.equal(by_processes.aspect, by_threads.aspect)
    assert torch.equal(by_processes.size_mm, by_threads.size_mm)


def test_who_dies_of_an_image_is_replaced_and_the_image_left_out(index, monkeypatch):
    monkeypatch.setattr(loader, "decoded", decoded)
    form, rows = CanvasForm(16, 1), np.arange(12)
    expected, _ = loaded(index, form, Decoding(), np.array([0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]))
    for row, what in ((5, DEADLY), (9, ONCE)):
        add(index.rows[row].path, what)
        index.rows[row] = replace(index.rows[row], state=None)  # as if it had always been so
    found, skipped = loaded(index, form, InProcesses(), rows)
    assert skipped == [("05.png", DIED)]
    assert torch.equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("how", ["killed", "segfault", "abort"])
def test_every_kind_of_death_is_survived(processes, how):
    before = processes.run(os.getpid)
    with pytest.raises(Unreadable, match=DIED):
        processes.run(die, how)
    assert before != processes.run(os.getpid) != os.getpid()


def test_what_cannot_be_read_is_no_death(processes, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    before = processes.run(os.getpid)
    with pytest.raises(Unreadable, match="not an image"):
        processes.run(decoding_of_nothing, tmp_path / "a.png")
    assert processes.run(os.getpid) == before


def decoding_of_nothing(path):
    from dino_x.data.readers import registry

    return registry.read(path)


def test_signals_for_the_run_are_not_for_its_decoders(processes):
    before = processes.run(os.getpid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(before, number)
    assert processes.run(os.getpid) == before


def test_no_image_is_blamed_where_no_process_can_be_started(processes, monkeypatch):
    monkeypatch.setattr(decoding, "_start", cannot_start)
    with pytest.raises(UserError, match="cannot be started.*data.decode_in=threads"):
        processes.run(os.getpid)


def test_they_end_when_the_run_is_killed():
    code = (
        "import os, time; from dino_x.data.readers.decoding import InProcesses\n"
        "if __name__ == '__main__':\n"
        "    processes = InProcesses(); print(processes.run(os.getpid), flush=True)\n"
        "    processes.run(time.sleep, 100)"  # a decoder that does not come to an end
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_a_run_decodes_in_processes_on_the_same_trajectory(films, tmp_path, monkeypatch):
    """With a deadly image that is found before training, and one that is found while training."""
    flags = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 3, "--centering", "sinkhorn")
    for name in ("threads", "processes"):
        shutil.copytree(films, tmp_path / name)
    first = tmp_path / "processes" / "a" / "003.png"
    add(first, DEADLY)
    (tmp_path / "threads" / "a" / "003.png").unlink()
    monkeypatch.setattr(index_module, "_holds_values", decode)
    monkeypatch.setattr(loader, "decoded", decoded)
    for name in ("threads", "processes"):
        out = tmp_path / f"run in {name}"
        assert pretrain(tmp_path / name, out, *flags, data__decode_in=name) == 0
    assert losses(tmp_path / "run in processes") == losses(tmp_path / "run in threads")
    with (tmp_path / "run in processes" / "skipped.csv").open() as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [(str(first), DIED)]
    late = {"data__decode_in": "processes", "data__verify": "headers"}
    assert pretrain(tmp_path / "processes", tmp_path / "late", *flags, **late) == 0
    with (tmp_path / "late" / "skipped.csv").open() as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [(str(first), DIED)]
