"""Processes that wait for another notice that it is gone or frozen."""

import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from dino_x.distributed import watch
from dino_x.distributed.watch import MOST_MISSED, Watch

BEAT = 0.05
LONG = 3 * MOST_MISSED * BEAT


@pytest.fixture
def meeting(monkeypatch):
    """A store, and a way to make the watches of some processes; what each ended with."""
    monkeypatch.setattr(watch, "BEAT", BEAT)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    watches, ended = [], {}

    def start(*ranks, count=3):
        for rank in ranks:
            end = lambda message, rank=rank: ended.setdefault(rank, message)  # noqa: E731
            watches.append(Watch("127.0.0.1", port, rank, count, end))
        return watches

    yield start, ended, store
    for one in watches:
        one.stop()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(BEAT)


def test_processes_that_are_there_are_left_alone(meeting):
    start, ended, _ = meeting
    start(0, 1, 2)
    time.sleep(LONG)
    assert ended == {}


def test_one_that_is_gone_ends_the_others_and_the_first_says_it(meeting):
    start, ended, _ = meeting
    _, gone, _ = start(0, 1, 2)
    time.sleep(LONG)
    gone.stop()
    wait_until(lambda: len(ended) == 2)
    assert "process 0: no sign of life from process 1 for" in ended[0]
    assert "--resume" in ended[0]
    assert ended[2] == ""


def test_without_the_first_the_next_says_it(meeting):
    start, ended, _ = meeting
    start(1, 2)
    wait_until(lambda: len(ended) == 2)
    assert "process 1: no sign of life from process 0 " in ended[1]
    assert ended[2] == ""


def test_a_store_that_does_not_answer_is_a_loss_too(meeting, monkeypatch):
    """As when the machine that has it is frozen: the thread that asks hangs."""
    start, ended, _ = meeting
    hang = threading.Event()
    (alone,) = start(0, count=1)
    monkeypatch.setattr(alone, "_store", SimpleNamespace(add=lambda *_: hang.wait(20)))
    wait_until(lambda: ended)
    hang.set()


def test_a_watch_that_is_stopped_says_nothing(meeting):
    start, ended, _ = meeting
    start(0)[0].stop()
    time.sleep(LONG)
    assert ended == {}


def test_a_job_that_was_suspended_as_a_whole_goes_on(meeting, monkeypatch):
    """Time is counted in own beats, so that a clock that jumped ends nothing."""
    start, ended, _ = meeting
    start(0, 1, 2)
    before = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: before() + 3600)
    monkeypatch.setattr(time, "time", lambda: before() + 3600)
    time.sleep(LONG)
    assert ended == {}
