"""One process or several: the same training, and the same end when one of them fails."""

import json
import shutil
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
CASES = {
    "queue": {"loss__centering": "sinkhorn", "loss__queue": 48},
    "koleo group": {"loss__centering": "sinkhorn", "loss__koleo_group": 4, "model__layerscale": 1},
    "softmax": {"loss__centering": "softmax", "head__init": "fan_in"},
    "gram": {"loss__centering": "sinkhorn", "gram__weight": 1.0, "gram__start": 1},
}


def free_ports(count):
    """The first of some ports in a row that are free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return min(found.getsockname()[1], 65_000 - count)


def several(count, cases, folder, seconds=300):
    """What each process of each case ended with: [case][rank]; None for one that died."""
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps(cases))
    port = free_ports(len(cases))
    command = [sys.executable, str(Path(worker.__file__))]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(count), str(port), folder / "cases.json", folder]
        )
        for rank in range(count)
    ]
    try:
        for process in processes:
            process.wait(timeout=seconds)
    finally:
        for process in processes:
            process.kill()
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*-*.json")}
    return [[found.get(f"{n}-{rank}") for rank in range(count)] for n in range(len(cases))]


def arguments(films, out, micro_batch, **settings):
    said = COMMON | {"train__micro_batch": micro_batch} | settings
    return ["pretrain", "--data", str(films), "--out", str(out), *tiny_settings(**said)]


def weights(run):
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    return state["student"] | {f"teacher {n}": v for n, v in state["teacher"].items()}


@pytest.fixture(scope="module")
def alone(films, tmp_path_factory):
    """Each case with one process and the whole batch at once."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in CASES.items():
        said = COMMON | {"train__micro_batch": 16} | settings
        assert pretrain(films, folder / name, **said) == 0
    return folder


@pytest.fixture(scope="module")
def by_two(films, alone, tmp_path_factory):
    """Each case with two processes, and one of them resumed from one process's checkpoint."""
    return shared(2, 4, list(CASES), films, alone, tmp_path_factory)


@pytest.fixture(scope="module")
def by_four(films, alone, tmp_path_factory):
    """The first case with four processes, and resumed."""
    return shared(4, 2, ["queue"], films, alone, tmp_path_factory)


def shared(count, micro_batch, names, films, alone, tmp_path_factory):
    """Runs of some cases in several processes."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(alone / "queue", folder / "resumed")
    sorted((folder / "resumed" / "checkpoints").glob("*.pt"))[-1].unlink()
    cases = [
        {"arguments": arguments(films, folder / name, micro_batch, **settings)}
        for name, settings in ((name, CASES[name]) for name in names)
    ]
    resumed = arguments(films, folder / "resumed", micro_batch, **CASES["queue"])
    cases.append({"arguments": [*resumed, "--resume"]})
    for ranks in several(count, cases, folder / "results"):
        assert [found["status"] for found in ranks] == [0] * count, ranks
        assert not any(found["said"] for found in ranks[1:])
    return folder


@pytest.mark.parametrize("name", [*CASES, "resumed"])
def test_two_processes_train_as_one_does(alone, by_two, name):
    assert_same(alone, by_two, name)


@pytest.mark.parametrize("name", ["queue", "resumed"])
def test_four_processes_train_as_one_does(alone, by_four, name):
    assert_same(alone, by_four, name)


def assert_same(alone, shared, name):
    """The same weights and the same numbers in every step."""
    expected = weights(alone / name.replace("resumed", "queue"))
    found = weights(shared / name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-10, msg=key)
    steps, alone_steps = metrics(shared / name), metrics(alone / name.replace("resumed", "queue"))
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    for step, alone_step in zip(steps, alone_steps, strict=True):
        for term in ("loss", "dino", "ibot", "koleo", "gradient_norm"):
            assert step[term] == pytest.approx(alone_step[term], rel=1e-8)


def test_a_failure_in_one_process_ends_all_with_one_message(films, tmp_path):
    plain = CASES["queue"]
    cases = {
        "not finite in another process": {"spoil": "not finite in phase 3"},
        "come apart": {"spoil": "weights come apart"},
        "step 1 with a micro-batch of 4 (in process 1); 2 fits by calculation": {
            "spoil": "out of memory in phase 3"
        },
        "out of memory in step 1 with a micro-batch of 4 (in process 1); 2": {
            "spoil": "out of memory in phase 1"
        },
        "process 1 has other settings": {"of the second": ["--set", "optim.lr=0.5"]},
        "effective batch 15 is not a multiple": {"arguments": {"train__effective_batch": 15}},
    }
    jobs = []
    for number, case in enumerate(cases.values()):
        settings = plain | case.pop("arguments", {})
        jobs.append({"arguments": arguments(films, tmp_path / str(number), 4, **settings)} | case)
    for message, ranks in zip(cases, several(2, jobs, tmp_path / "results"), strict=True):
        assert [found["status"] for found in ranks] == [2, 2], ranks
        assert message in ranks[0]["said"]
        assert ranks[1]["said"] == ""


def test_a_process_that_dies_takes_the_others_down(films, tmp_path):
    started = time.monotonic()
    job = {"arguments": arguments(films, tmp_path / "run", 4, **CASES["queue"]), "spoil": "dies"}
    ((first, second),) = several(2, [job], tmp_path / "results")
    assert second is None
    assert first["status"] == 2
    assert "another process of the run has ended" in first["said"]
    assert time.monotonic() - started < 120  # with both starts, on a busy machine
