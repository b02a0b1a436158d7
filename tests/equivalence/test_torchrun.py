"""Two machines, played by two torchrun agents on this one, through the real command line."""

import os
import subprocess
import sys

import pytest

from tests.equivalence.test_processes import CASES, COMMON, arguments, assert_same, free_ports
from tests.training.runs import pretrain

pytestmark = pytest.mark.slow


def test_processes_on_two_machines_train_as_one_process_does(films, tmp_path):
    """Of 17 images they have 8 and 9; networks are in parts."""
    case = CASES["koleo group"] | {
        "train__effective_batch": 17, "loss__koleo_group": "effective", "checkpoint__every": 4,
    }  # fmt: skip
    alone = COMMON | case | {"train__micro_batch": 17}
    assert pretrain(films, tmp_path / "alone" / "run", **alone) == 0
    (tmp_path / "shared").mkdir()
    overrides = arguments(films, tmp_path / "shared" / "run", 3, **case, train__shard="full")
    launcher = [
        "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_ports(1)}",
        "--rdzv-conf", "join_timeout=120", "--no-python",
    ]  # fmt: skip
    agents = [
        subprocess.Popen(
            [sys.executable, "-m", *launcher, sys.executable, "-m", "dino_x.cli", *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=(tmp_path / f"agent-{number}").open("w"),
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    try:
        statuses = [agent.wait(timeout=280) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
    collect_overrides = [(tmp_path / f"agent-{number}").read_text() for number in range(2)]
    assert statuses == [0, 0], collect_overrides
    assert sum("2 to 3 on each of 2 processes" in text for text in collect_overrides) == 1
    assert_same(tmp_path / "alone", tmp_path / "shared", "run")
