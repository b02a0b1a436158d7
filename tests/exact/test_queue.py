import numpy as np
import pytest
import torch

from dino_x.exact import HeadState
from dino_x.exact.centering import latest
from tests.training.runs import losses, metrics, pretrain, weights

FLAGS = ("--effective-batch", 8, "--steps", 4, "--precision", "fp64", "--centering", "sinkhorn")


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_the_latest_rows_are_kept_oldest_first():
    queue = latest(rows(1.0, 2.0), rows(3.0, 4.0), 3)
    assert queue[:, 0].tolist() == [2, 3, 4]
    assert latest(queue, rows(5.0), 3)[:, 0].tolist() == [3, 4, 5]
    assert latest(queue, rows(5.0), 9)[:, 0].tolist() == [2, 3, 4, 5]


def test_of_a_step_with_more_rows_evenly_spaced_ones_are_kept():
    assert latest(rows(9.0), rows(*map(float, range(10))), 4)[:, 0].tolist() == [0, 2, 5, 7]


def test_a_queue_of_length_0_stays_empty():
    state = HeadState.first(5, torch.zeros(1, dtype=torch.float64), queue=0)
    assert len(state.after(rows(1.0), state.center_K).queue_QD) == 0


def test_the_bias_is_that_of_queue_and_batch_together(tmp_path):
    from dino_x.losses import sinkhorn_bias
    from tests.equivalence.conftest import Bench

    bench = Bench(tmp_path, loss__queue=20, train__micro_batch=4)
    bench.trainer.fill_queues()
    state = bench.trainer.state.centering
    head, queue = bench.trainer.teacher.dino_head, state.dino.queue_QD
    assert len(queue) == 20
    assert len(state.ibot.queue_QD) == 20
    targets = bench.trainer.exact_step.targets(bench.batch(2), state, bench.temperature)
    batch = torch.cat(targets.cls_VbD, dim=1).flatten(0, 1)
    both = sinkhorn_bias(torch.cat([queue, batch]), head.prototypes(), bench.temperature)
    torch.testing.assert_close(targets.dino_bias_K, both, rtol=1e-10, atol=1e-10)
    alone = sinkhorn_bias(batch, head.prototypes(), bench.temperature)
    assert (both - alone - (both - alone).mean()).abs().max() > 1e-3


def test_off_and_length_0_are_the_same_to_the_bit(films, tmp_path):
    assert pretrain(films, tmp_path / "off", *FLAGS, "--micro-batch", 4) == 0
    assert pretrain(films, tmp_path / "zero", *FLAGS, "--micro-batch", 4, "--queue", 0) == 0
    assert losses(tmp_path / "off") == losses(tmp_path / "zero")
    assert "queue_age" not in metrics(tmp_path / "off")[0]


@pytest.mark.parametrize("length", [24, 300])
def test_a_run_with_a_queue_does_not_depend_on_the_micro_batch(films, tmp_path, length):
    for size in (2, 8):
        flags = (*FLAGS, "--micro-batch", size, "--queue", length)
        assert pretrain(films, tmp_path / str(size), *flags) == 0
    small, whole = (np.array(losses(tmp_path / str(size))) for size in (2, 8))
    np.testing.assert_allclose(small, whole, rtol=1e-8)
    after, expected = weights(tmp_path / "2", 4), weights(tmp_path / "8", 4)
    for head in ("dino", "ibot"):
        assert len(expected[f".queues.{head}"]) == length
        torch.testing.assert_close(
            after[f".queues.{head}"], expected[f".queues.{head}"], rtol=1e-8, atol=1e-10
        )
    assert metrics(tmp_path / "8")[0]["queue_age"] == -(-length // 16)


def test_the_queue_matters(films, tmp_path):
    for length in (0, 64):
        flags = (*FLAGS, "--micro-batch", 8, "--queue", length)
        settings = {"head__init": "fan_in", "head__normalize_prototypes": "true"}
        assert pretrain(films, tmp_path / str(length), *flags, **settings) == 0
    off, on = (losses(tmp_path / str(length))[0][0] for length in (0, 64))
    assert abs(off - on) > 1e-3


def test_a_resumed_run_has_the_same_queue_bit_for_bit(films, tmp_path):
    flags = (*FLAGS, "--micro-batch", 4, "--queue", 40)
    settings = {"checkpoint__every": 2, "checkpoint__keep": 9}
    for run in ("whole", "resumed"):
        assert pretrain(films, tmp_path / run, *flags, **settings) == 0
    before, after = (weights(tmp_path / "whole", step)[".queues.dino"] for step in (2, 4))
    torch.testing.assert_close(after[:8], before[32:])  # two steps of 16 rows moved it on
    assert not torch.equal(after, before)
    (tmp_path / "resumed" / "checkpoints" / "step-00000004.pt").unlink()
    assert pretrain(films, tmp_path / "resumed", *flags, "--resume", **settings) == 0
    resumed, whole = weights(tmp_path / "resumed", 4), weights(tmp_path / "whole", 4)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_a_queue_shorter_than_0_is_refused(films, tmp_path, capsys):
    assert pretrain(films, tmp_path / "run", *FLAGS, "--queue", -1) == 2
    assert "loss.queue" in capsys.readouterr().err
