"""Whole runs of the command: neither the micro-batch nor a restart changes the trajectory.

Stochastic depth, RoPE rescaling, masks, KoLeo, the frozen last layer: everything is at its default
but the sizes, which are small enough for a test.
"""

import numpy as np
import pytest
import torch

from tests.training.runs import killed_after, losses, metrics, pretrain, weights


@pytest.mark.parametrize(
    "flags",
    [
        ("--centering", "sinkhorn"),
        ("--centering", "softmax"),
        ("--centering", "sinkhorn", "--koleo-group", 16),
    ],
    ids=["sinkhorn", "softmax", "koleo in groups of 16"],
)
def test_runs_that_differ_only_in_the_micro_batch_are_the_same(films, tmp_path, flags):
    flags = ["--effective-batch", 32, "--steps", 5, "--precision", "fp64", *flags]
    for size in (4, 32):
        assert pretrain(films, tmp_path / str(size), "--micro-batch", size, *flags) == 0
    small, whole = (np.array(losses(tmp_path / str(size))) for size in (4, 32))
    assert small.shape[0] == 5
    np.testing.assert_allclose(small, whole, rtol=1e-8)
    after, expected = weights(tmp_path / "4", 5), weights(tmp_path / "32", 5)
    layer = ".backbone.vit.model.layer.1.mlp.up_proj.weight"
    moved = (expected[f".student{layer}"] - expected[f".teacher{layer}"]).abs().max()
    assert moved > 1e-4, "the run must train, or the test shows nothing"
    for name, value in expected.items():
        if name.startswith((".student", ".teacher", ".centers")):
            torch.testing.assert_close(after[name], value, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_after_step_3_and_resumed_is_the_same_bit_for_bit(films, tmp_path, precision):
    flags = ["--effective-batch", 8, "--micro-batch", 4, "--centering", "sinkhorn",
             "--steps", 6, "--precision", precision]  # fmt: skip
    settings = {"checkpoint__every": 2, "checkpoint__keep": 9}
    assert pretrain(films, tmp_path / "whole", *flags, **settings) == 0
    killed_after(3, films, tmp_path / "killed", *flags, **settings)
    assert len(metrics(tmp_path / "killed")) < 6, "it was killed too late to show anything"
    assert pretrain(films, tmp_path / "killed", "--resume", *flags, **settings) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    resumed, whole = weights(tmp_path / "killed", 6), weights(tmp_path / "whole", 6)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_a_resumed_run_may_use_another_micro_batch(films, tmp_path):
    flags = ["--effective-batch", 8, "--steps", 4, "--precision", "fp64", "--centering", "sinkhorn"]
    settings = {"checkpoint__every": 2, "checkpoint__keep": 9}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run in (whole, resumed):
        assert pretrain(films, run, "--micro-batch", 8, *flags, **settings) == 0
    (resumed / "checkpoints" / "step-00000004.pt").unlink()
    assert pretrain(films, resumed, "--micro-batch", 2, "--resume", *flags, **settings) == 0
    np.testing.assert_allclose(np.array(losses(resumed)), np.array(losses(whole)), rtol=1e-8)


def test_another_seed_is_another_run(films, tmp_path):
    """So the equalities above are not those of runs in which nothing is random."""
    flags = ["--effective-batch", 8, "--micro-batch", 8, "--steps", 2, "--precision", "fp64"]
    for seed in (0, 1):
        assert pretrain(films, tmp_path / str(seed), "--seed", seed, *flags) == 0
    first, second = (np.array(losses(tmp_path / str(seed))) for seed in (0, 1))
    assert not np.allclose(first, second, rtol=1e-4)
