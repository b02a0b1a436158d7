"""Several processes, and something goes wrong in one of them: all draw the same conclusion."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.equivalence import one_of_several_processes as worker
from tests.equivalence.test_processes import CASES, arguments, free_ports, several, weights
from tests.training.runs import metrics

pytestmark = pytest.mark.slow

SETTINGS = CASES["queue"] | {"online__every": 0, "report__snapshots": "false"}
PHASES = (1, 2, 3)
NETWORKS = ("", ", in parts")  # of each process: whole, or cut
BROKEN = ("a/003.png", "b/010.png", "a/011.png", "b/016.png", "a/021.png", "b/030.png")


@pytest.fixture(scope="module")
def broken(films, tmp_path_factory):
    """The films, some of them with half of their bytes: their headers can be read."""
    folder = tmp_path_factory.mktemp("broken") / "films"
    shutil.copytree(films, folder)
    for name in BROKEN:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture(scope="module")
def ended(films, broken, tmp_path_factory):
    """Each case by two processes: what each ended with, and the run."""
    folder = tmp_path_factory.mktemp("runs")
    unreadable = SETTINGS | {"data__verify": "headers", "data__cache_mb": 0}
    cases = {
        "stop": {"spoil": "is asked to stop"},
        "nan": {"spoil": "not finite in step 2"},
        "unreadable": {"arguments": arguments(broken, folder / "unreadable", 4, **unreadable)},
    } | {f"phase {phase}": {"spoil": f"gives up in phase {phase}"} for phase in PHASES}
    cases |= {
        f"{name}, in parts": case | {"parts": True}
        for name, case in cases.items()
        if name != "unreadable"
    }
    for name, case in cases.items():
        more = {"train__shard": "full"} if "parts" in case else {}
        case.setdefault("arguments", arguments(films, folder / name, 4, **SETTINGS, **more))
    found = several(2, list(cases.values()), folder / "results")
    return {name: (ranks, folder / name) for name, ranks in zip(cases, found, strict=True)}


@pytest.mark.parametrize("networks", NETWORKS)
def test_a_signal_to_one_stops_all_after_the_same_step(ended, networks):
    ranks, run = ended["stop" + networks]
    assert [found["status"] for found in ranks] == [138, 138], ranks
    assert "dino-x: stopped by a signal after step" in ranks[0]["said"]
    assert "stopped" not in ranks[1]["said"]
    assert [step["step"] for step in metrics(run)] == [1, 2, 3]
    assert sorted(run.glob("checkpoints/*.pt"))[-1].name == "step-00000003.pt"


@pytest.mark.parametrize("networks", NETWORKS)
def test_a_step_that_is_no_number_in_one_is_skipped_by_all(ended, networks):
    ranks, run = ended["nan" + networks]
    assert [found["status"] for found in ranks] == [0, 0], ranks
    assert [step.get("skipped") for step in metrics(run)] == [None, 1, None, None]


def test_an_unreadable_image_is_replaced_alike_and_listed_once(broken, ended, tmp_path):
    """In another process, by the same image: the run is that of one process."""
    ranks, run = ended["unreadable"]
    assert [found["status"] for found in ranks] == [0, 0], ranks
    unreadable = SETTINGS | {"data__verify": "headers", "data__cache_mb": 0}
    alone = arguments(broken, tmp_path / "alone", 16, **unreadable)
    assert worker.main(alone) == 0
    for name, value in weights(tmp_path / "alone").items():
        torch.testing.assert_close(weights(run)[name], value, rtol=1e-8, atol=1e-10, msg=name)
    lists = []
    for folder in (run, tmp_path / "alone"):
        with (folder / "skipped.csv").open() as file:
            lists.append(sorted(Path(row["path"]).name for row in csv.DictReader(file)))
    assert lists == [sorted(Path(name).name for name in BROKEN)] * 2


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_loader_that_gives_up_in_one_ends_all_with_its_line(ended, phase, networks):
    ranks, run = ended[f"phase {phase}{networks}"]
    assert [found["status"] for found in ranks] == [2, 2], ranks
    assert "process 1: 1000 images in a row cannot be read any more" in ranks[0]["said"]
    assert "1000 images" not in ranks[1]["said"]
    assert len(metrics(run)) == 1


def test_who_waits_in_vain_ends_when_asked_to(films, tmp_path):
    """The other does not answer, and no connection is lost: nothing would ever wake it up."""
    case = {
        "arguments": arguments(films, tmp_path / "run", 4, **SETTINGS, checkpoint__every=1),
        "spoil": "hangs",
    }
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    command = [sys.executable, worker.__file__]
    rest = ["2", str(free_ports(1)), str(tmp_path / "cases.json"), str(tmp_path)]
    first, second = (
        subprocess.Popen([*command, rank, *rest], stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    )
    try:
        printed = first.communicate(timeout=120)[1]
        assert first.returncode == 128 + 15
        assert (
            "process 0: asked to stop while it waits for another process, which does not" in printed
        )
        assert "step-00000002.pt; continue with --resume" in printed
        assert len(printed.splitlines()) == 1
    finally:
        second.kill()
        second.communicate()
