"""Small crops in the first steps: neither the micro-batch nor a restart changes the run."""

import numpy as np
import torch

from tests.training.runs import losses, pretrain, weights

FLAGS = ("--effective-batch", 8, "--steps", 4, "--precision", "fp64", "--centering", "sinkhorn")
EARLY = {"views__early_share": 0.5, "checkpoint__every": 1, "checkpoint__keep": 9}


def test_a_run_that_grows_its_crops_does_not_depend_on_the_micro_batch_and_resumes(films, tmp_path):
    for size in (2, 8):
        assert pretrain(films, tmp_path / str(size), "--micro-batch", size, *FLAGS, **EARLY) == 0
    small, whole = (np.array(losses(tmp_path / str(size))) for size in (2, 8))
    np.testing.assert_allclose(small, whole, rtol=1e-8)
    for step in (2, 3, 4):  # resumed before the crops grow
        (tmp_path / "8" / "checkpoints" / f"step-{step:08d}.pt").unlink()
    expected = weights(tmp_path / "2", 4)
    flags = ("--micro-batch", 8, *FLAGS, "--resume")
    assert pretrain(films, tmp_path / "8", *flags, **EARLY) == 0
    assert (np.array(losses(tmp_path / "8")) == whole).all()
    for name, value in weights(tmp_path / "8", 4).items():
        if name.startswith((".student", ".teacher")):
            torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-8, msg=name)


def test_the_first_steps_are_other_steps_than_without_it(films, tmp_path):
    flags = ("--micro-batch", 8, *FLAGS)
    assert pretrain(films, tmp_path / "early", *flags, **EARLY) == 0
    assert pretrain(films, tmp_path / "plain", *flags) == 0
    assert losses(tmp_path / "early")[0] != losses(tmp_path / "plain")[0]
