"""One process or several: the same training, and the same end when one of them fails."""

import contextlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import tiny_settings
from tests.equivalence import one_of_several_processes as worker
from tests.training.runs import metrics, pretrain

pytestmark = pytest.mark.slow

COMMON = {
    "train__effective_batch": 16, "train__steps": 4, "train__precision": "fp64",
    "model__drop_path": 0.1, "checkpoint__every": 2, "data__workers": 1,
}  # fmt: skip
CASES: dict[str, dict[str, object]] = {
    "queue": {"loss__centering": "sinkhorn", "loss__queue": 48},
    "koleo group": {"loss__centering": "sinkhorn", "loss__koleo_group": 4, "model__layerscale": 1},
    "softmax": {"loss__centering": "softmax", "head__init": "fan_in"},
    "gram": {"loss__centering": "sinkhorn", "gram__weight": 1.0, "gram__start": 1},
}
UNEQUAL = {  # groups that go into a micro-batch of 6, but not into one of 5
    "koleo pairs": CASES["koleo group"] | {"loss__koleo_group": 2, "train__micro_batch": 6}
}


def free_ports(count):
    """The first of some ports in a row that are free now.

    Below those that connections are given by themselves, 32,768 and up on Linux: the processes of
    one case have many, and one of them might be the port of the next.
    """
    while True:
        first = random.SystemRandom().randrange(10_000, 30_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def several(count, cases, folder, seconds=900):
    """What each process of each case ended with: [case][rank]; None for one that died."""
    with started(count, cases, folder) as processes:
        for process in processes:
            process.wait(timeout=seconds)
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*-*.json")}
    return [[found.get(f"{n}-{rank}") for rank in range(count)] for n in range(len(cases))]


@contextlib.contextmanager
def started(count, cases, folder):
    """Processes that do some cases; ended with the block."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    port = free_ports(len(cases))
    command = [sys.executable, str(Path(worker.__file__))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(count), str(port), folder / "cases.json", folder],
            stderr=(folder / f"stderr-{rank}").open("w"),
        )
        for rank in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def arguments(films, out, micro_batch=None, **settings):
    overrides = COMMON | ({"train__micro_batch": micro_batch} if micro_batch else {}) | settings
    return ["pretrain", "--data", str(films), "--out", str(out), *tiny_settings(**overrides)]


def weights(run):
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    return state["student"] | {f"teacher {n}": v for n, v in state["teacher"].items()}


@pytest.fixture(scope="module")
def alone(films, tmp_path_factory):
    """Each case with one process and the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in (CASES | UNEQUAL).items():
        overrides = COMMON | settings | {"train__micro_batch": 16}
        assert pretrain(films, folder / name, **overrides) == 0
    return folder


@pytest.fixture(scope="module")
def by_two(films, alone, tmp_path_factory):
    """Each case with two processes, and one of them resumed from one process's checkpoint."""
    return shared(2, 4, CASES, films, alone, tmp_path_factory)


@pytest.fixture(scope="module")
def by_three(films, alone, tmp_path_factory):
    """Three processes have 5, 5 and 6 of the 16 images, in micro-batches of 2 and 3."""
    cases = {"queue": CASES["queue"], "softmax": CASES["softmax"] | {"train__shard": "full"}}
    return shared(3, 4, cases | UNEQUAL, films, alone, tmp_path_factory)


def shared(count, micro_batch, named, films, alone, tmp_path_factory):
    """Runs of some cases in several processes, and one that goes on with one process's run."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(alone / "queue", folder / "resumed")
    sorted((folder / "resumed" / "checkpoints").glob("*.pt"))[-1].unlink()
    cases = [
        {"arguments": arguments(films, folder / name, micro_batch, **settings)}
        for name, settings in named.items()
    ]
    resumed = arguments(films, folder / "resumed", **CASES["queue"])  # its micro-batch is 16
    cases.append({"arguments": [*resumed, "--resume"]})
    for ranks in several(count, cases, folder / "results"):
        assert [found["status"] for found in ranks] == [0] * count, ranks
        assert not any(found["said"] for found in ranks[1:])
    assert "(16 does not divide a process's images; the result is the same)" in ranks[0]["said"]
    return folder


@pytest.mark.parametrize("name", [*CASES, "resumed"])
def test_two_processes_train_as_one_does(alone, by_two, name):
    assert_same(alone, by_two, name)


@pytest.mark.parametrize("name", ["queue", "softmax", *UNEQUAL, "resumed"])
def test_three_processes_with_unequal_shares_train_as_one_does(alone, by_three, name):
    assert_same(alone, by_three, name)


def test_one_process_goes_on_from_unequal_shares(films, alone, by_three, tmp_path):
    """Its micro-batch, 3, does not divide 16, and becomes 2; one that is named is refused."""
    shutil.copytree(by_three / "queue", tmp_path / "queue")
    sorted((tmp_path / "queue" / "checkpoints").glob("*.pt"))[-1].unlink()
    overrides = COMMON | CASES["queue"]
    assert pretrain(films, tmp_path / "queue", "--resume", "--micro-batch", 3, **overrides) == 2
    assert pretrain(films, tmp_path / "queue", "--resume", **overrides) == 0
    assert_same(alone, tmp_path, "queue")


def assert_same(alone, shared, name, resumed="queue"):
    """The same weights and the same numbers in every step; ``resumed`` is the case gone on with."""
    reference = alone / (resumed if name == "resumed" else name)
    expected, found = weights(reference), weights(shared / name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-10, msg=key)
    steps, alone_steps = metrics(shared / name), metrics(reference)
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step, alone_step in zip(steps, alone_steps, strict=True):
        for term in ("loss", "dino", "ibot", "koleo", "gradient_norm"):
            assert step[term] == pytest.approx(alone_step[term], rel=1e-8)


def test_a_failure_in_one_process_ends_all_with_one_message(films, tmp_path):
    plain = CASES["queue"]
    cases = {
        "not finite in another process": {"spoil": "not finite in phase 3"},
        "come apart": {"spoil": "weights come apart"},
        "step 1 with a micro-batch of 4 (in process 1); 3 fits by calculation": {
            "spoil": "out of memory in phase 3"
        },
        "out of memory in step 1 with a micro-batch of 4 (in process 1); 3": {
            "spoil": "out of memory in phase 1"
        },
        "out of memory in step 1 with a micro-batch of 4 (in process 1)": {
            "spoil": "out of memory in the losses",
            "arguments": {"train__shard": "full"},
        },
        "process 1 has other settings than process 0 (optim.lr)": {
            "of the second": ["--set", "optim.lr=0.5"]
        },
        "effective batch 1 has fewer images than there are processes (2)": {
            "arguments": {"train__effective_batch": 1}
        },
    }
    jobs = []
    for number, case in enumerate(cases.values()):
        settings = plain | case.pop("arguments", {})
        jobs.append({"arguments": arguments(films, tmp_path / str(number), 4, **settings)} | case)
    for message, ranks in zip(cases, several(2, jobs, tmp_path / "results"), strict=True):
        assert [found["status"] for found in ranks] == [2, 2], ranks
        assert message in ranks[0]["said"]
        assert ranks[1]["said"] == ""


@pytest.mark.parametrize(
    ("where", "settings"), [("the optimizer", {}), ("phase 3", {"train__shard": "full"})]
)
def test_one_that_is_out_of_memory_where_others_wait_for_it_says_so_itself(
    films, tmp_path, where, settings
):
    """And ends, for which the others do."""
    settings = CASES["queue"] | settings
    job = {"arguments": arguments(films, tmp_path / "run", 4, **settings),
           "spoil": f"out of memory in {where}"}  # fmt: skip
    ((first, second),) = several(2, [job], tmp_path / "results", seconds=200)
    assert [first["status"], second["status"]] == [2, 2]
    expected = "process 1: out of memory in step 1 with a micro-batch of 4 (tried to allocate 2"
    assert expected in second["said"]
    assert "3 fits by calculation" in second["said"]
    assert "another process of the run has ended, see its message" in first["said"]


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_is_killed_takes_the_others_down(films, tmp_path, dying):
    """In a step, where the others wait for it; whoever is left says so."""
    job = {"arguments": arguments(films, tmp_path / "run", 4, **CASES["queue"]),
           "spoil": "killed", "in": dying}  # fmt: skip
    with started(2, [job], tmp_path / "results") as processes:
        processes[dying].wait(timeout=200)
        died = time.monotonic()
        processes[1 - dying].wait(timeout=200)
    assert time.monotonic() - died < 20
    result = json.loads((tmp_path / "results" / f"0-{1 - dying}.json").read_text())
    assert result["status"] == 2
    assert "another process of the run has ended" in result["said"]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_one_that_is_lost_while_the_first_is_busy_is_missed_by_all(films, tmp_path, how):
    """The third waits for the first, and nobody for the second: see watch.py."""
    job = {"arguments": arguments(films, tmp_path / "run", 4, **CASES["queue"]),
           "spoil": how, "in": 1, "after step": 1, "first is busy": True, "beat": 0.3}  # fmt: skip
    with started(3, [job], tmp_path / "results") as (first, second, third):
        assert first.wait(timeout=200) == 2
        third.wait(timeout=20)  # by its own watch, or as it loses the first
        assert second.poll() == (-signal.SIGKILL if how == "killed" else None)
    stderr = [(tmp_path / "results" / f"stderr-{rank}").read_text() for rank in range(3)]
    # The third may lose a connection to the second, and end before the first looks.
    assert re.search("dino-x: process 0: no sign of life from process [12, ]+ for 3 s", stderr[0])
    assert "no sign of life" not in stderr[2]
