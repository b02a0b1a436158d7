"""Two processes with a part of the batch each find what one finds with all of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dino_x.losses import sinkhorn_bias
from tests.losses import one_of_two_processes as worker


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(worker.__file__)), str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def test_bias_is_that_of_one_process(found: list[dict]) -> None:
    expected = worker.biases(
        worker.effective_batch(), slice(0, worker.IMAGES), slice(0, 5), group=None
    )
    for ours in found:
        for path, expected_K in expected.items():
            torch.testing.assert_close(ours[path], expected_K, rtol=1e-10, atol=1e-10, msg=path)


def test_process_without_rows_takes_part(found: list[dict]) -> None:
    batch = worker.effective_batch()
    expected_K = sinkhorn_bias(batch["teacher_ND"], batch["teacher_prototypes_KD"], 0.3)
    for ours in found:
        torch.testing.assert_close(
            ours["all rows in one process"], expected_K, rtol=1e-10, atol=1e-10
        )


def test_gradient_under_ddp_is_that_of_one_process(found: list[dict]) -> None:
    batch = worker.effective_batch()
    head = worker.Head(batch["student_prototypes_KD"])
    bias_K = sinkhorn_bias(
        batch["teacher_ND"],
        batch["teacher_prototypes_KD"],
        worker.TEMPERATURES["teacher_temperature"],
        extra_bottlenecks_QD=batch["queue_QD"],
    )
    head(batch, slice(0, worker.IMAGES), bias_K).backward()
    for ours in found:
        torch.testing.assert_close(
            ours["gradient"], head.prototypes_KD.grad, rtol=1e-10, atol=1e-12
        )


def test_refusal_of_one_process_is_raised_in_both(found: list[dict]) -> None:
    assert "process 1 of the group refused its arguments" in found[0]["one refuses"]
    assert "temperature is -1.0" in found[1]["one refuses"]
    for ours in found:
        assert "bottlenecks_ND has 0 rows in every process" in ours["no rows"]
