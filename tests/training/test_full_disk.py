"""A disk that fills up while a run writes to it."""

import contextlib
import errno
import json
import math
import re

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino_x.runs import checkpoint
from dino_x.runs.append_only import json_line
from dino_x.runs.folder import RunFolder
from dino_x.training.trainer import Trainer
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
    printed = " ".join(capsys.readouterr().out.split())
    assert "nothing could be saved after step 2: [Errno 28] No space left" in printed
    assert "step-00000001.pt; training continues" in printed
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
    printed = capsys.readouterr().err
    assert re.search(
        "after step 4: .*No space left.* good checkpoint is .*step-00000002.pt.*--resume", printed
    )
    assert pretrain(films, tmp_path / "run", *FLAGS, "--resume", checkpoint__every=2) == 0


def test_a_really_full_disk_is_an_os_error_and_leaves_the_old_checkpoint(small_disk, tmp_path):
    disk = small_disk(tmp_path / "disk", 256)
    checkpoint.save(disk, 1, {"x": torch.zeros(1000)}, keep=2)
    with pytest.raises(OSError, match="No space|cannot be written"):
        checkpoint.save(disk, 2, {"x": torch.zeros(1_000_000)}, keep=2)
    assert checkpoint.load_newest(disk, torch.device("cpu"))["step"] == 1


def fill(disk):
    """Leave no byte of a file system; the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1000)):
            pass
    return filler


def at_steps(monkeypatch, actions):
    """Do something before some steps, from 1."""
    next_step = Trainer.next_step

    def acted(self, *arguments):
        actions.get(self.done + 1, lambda: None)()
        next_step(self, *arguments)

    monkeypatch.setattr(Trainer, "next_step", acted)


@pytest.mark.parametrize("rest", [0, 700, 1500, 3000])
def test_a_full_disk_costs_one_warning_and_no_line(
    small_disk, films, tmp_path, monkeypatch, capsys, rest
):
    """Full from step 3 on, to different bytes of a line; with room again from step 7 on."""
    disk = small_disk(tmp_path / "disk", 4000)
    out, filler = disk / "run", disk / "filler"

    def no_room():
        fill(disk)
        (disk / "rest").unlink()

    def whole():
        for line in (out / "metrics.jsonl").read_text().splitlines():
            json.loads(line)

    (disk / "rest").write_bytes(bytes(rest))
    actions = {3: no_room, 4: whole, 5: whole, 6: whole, 7: filler.unlink}
    at_steps(monkeypatch, actions)
    flags = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 8, "--centering", "sinkhorn")
    assert pretrain(films, out, *flags, checkpoint__every=4, checkpoint__keep=1) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("metrics.jsonl cannot be written (No space left on device)") == 1
    assert printed.count("TensorBoard's file in") <= 1
    assert printed.count("nothing could be saved after step 4") == 1
    assert [step["step"] for step in metrics(out)] == list(range(1, 9))
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    steps = [event.step for event in board.Scalars("loss")]
    assert steps[:2] == [1, 2]
    assert steps == list(range(1, len(steps) + 1))
    assert not list(out.rglob("*.partial"))


def test_a_disk_that_is_full_from_the_start_or_at_the_end_is_one_line(
    small_disk, films, tmp_path, monkeypatch, capsys
):
    disk = small_disk(tmp_path / "disk", 4000)
    filler = fill(disk)
    assert pretrain(films, disk / "run", *FLAGS) == 2
    assert re.fullmatch(r"dino-x: cannot write to .*: No space left.*\n", capsys.readouterr().err)
    filler.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("dino_x.commands.pretrain.say_where", lambda *of: fill(disk))
        flags = (*FLAGS, "--labels", "folder", "--resume")
        assert pretrain(films, disk / "run", *flags, report__page=True) == 2
    assert re.search(r"^dino-x: .*No space left.*\n$", capsys.readouterr().err)


def test_a_line_that_was_torn_by_a_kill_is_cut_off(tmp_path):
    run = RunFolder(tmp_path)
    whole = b"".join(json_line({"step": step, "loss": math.nan}) for step in (1, 2, 3))
    for torn in (b'{"step": 4, "lo', b'{"step": 4}', b"\xff\x00"):
        run.metrics.write_bytes(whole + torn)
        run.truncate_metrics(4)
        assert run.metrics.read_bytes() == whole
    run.truncate_metrics(2)
    assert run.metrics.read_bytes() == whole[: len(whole) // 3 * 2]
