"""A disk that fills up while a run writes its checkpoints."""

import errno
import re

import pytest
import torch

from dino_x.training import checkpoint
from tests.training.runs import metrics, pretrain

FLAGS = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 4, "--centering", "sinkhorn")


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_last_good_one_is_kept_and_the_run_goes_on(films, tmp_path, capsys, monkeypatch):
    write = checkpoint.write_atomically

    def fails_after_step_2(path, content):
        write(path, full if path.name == "step-00000002.pt" else content)

    monkeypatch.setattr(checkpoint, "write_atomically", fails_after_step_2)
    assert pretrain(films, tmp_path / "run", *FLAGS, checkpoint__every=1) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing could be saved after step 2: [Errno 28] No space left" in said
    assert "step-00000001.pt; going on" in said
    assert len(metrics(tmp_path / "run")) == 4
    kept = [path.name for path in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")]
    assert kept == ["step-00000003.pt", "step-00000004.pt"]


def test_a_run_whose_last_checkpoint_fails_says_how_to_finish(films, tmp_path, capsys, monkeypatch):
    write = checkpoint.write_atomically

    def fails_after_step_4(path, content):
        write(path, full if path.name == "step-00000004.pt" else content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", fails_after_step_4)
        status = pretrain(films, tmp_path / "run", *FLAGS, checkpoint__every=2)
    assert status == 2
    said = capsys.readouterr().err
    assert re.search(
        "after step 4: .*No space left.* good checkpoint is .*step-00000002.pt.*--resume", said
    )
    assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", checkpoint__every=2) == 0


def test_a_really_full_disk_is_an_os_error_and_leaves_the_old_checkpoint(small_disk, tmp_path):
    disk = small_disk(tmp_path / "disk", 256)
    checkpoint.save(disk, 1, {"x": torch.zeros(1000)}, keep=2)
    with pytest.raises(OSError, match="No space|cannot be written"):
        checkpoint.save(disk, 2, {"x": torch.zeros(1_000_000)}, keep=2)
    assert checkpoint.load_newest(disk, torch.device("cpu"))["step"] == 1
