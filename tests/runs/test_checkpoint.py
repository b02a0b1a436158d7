import os
import pickle

import pytest
import torch

from dino_x.errors import UserError
from dino_x.files import write_atomically
from dino_x.runs.checkpoint import (
    checkpoints,
    load_newest,
    remove_leftovers,
    save,
)

CPU = torch.device("cpu")


def test_the_newest_are_kept_and_the_last_is_loaded(tmp_path):
    for step in (1, 2, 10):
        save(tmp_path, step, {"x": torch.tensor(step)}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-00000002.pt", "step-00000010.pt",
    ]  # fmt: skip
    state = load_newest(tmp_path, CPU)
    assert state["step"] == 10
    assert state["x"] == 10


def test_none_is_none(tmp_path):
    assert load_newest(tmp_path / "nowhere", CPU) is None


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def crash(temporary):
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, crash)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code was run",))

    (tmp_path / "step-00000001.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="damaged"):
        load_newest(tmp_path, CPU)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(tmp_path):
    for step in (3, 6):
        save(tmp_path, step, {"x": torch.arange(1000)}, keep=2)
    flip_a_bit(tmp_path / "step-00000006.pt")
    messages = []
    assert load_newest(tmp_path, CPU, messages.append)["step"] == 3
    assert "step-00000006.pt is damaged (its checksum is another)" in messages[0]
    assert "step-00000003.pt" in messages[0]
    flip_a_bit(tmp_path / "step-00000003.pt")
    with pytest.raises(UserError, match=r"step-00000006.pt is damaged .* no other that is whole"):
        load_newest(tmp_path, CPU)


def test_a_checkpoint_of_a_future_that_was_given_up_is_removed(tmp_path):
    save(tmp_path, 6, {}, keep=1)
    save(tmp_path, 4, {}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000004.pt", "step-00000004.sha256",
    ]  # fmt: skip


def test_checkpoints_without_a_checksum_are_loaded(tmp_path):
    save(tmp_path, 2, {}, keep=1)
    (tmp_path / "step-00000002.sha256").unlink()
    assert load_newest(tmp_path, CPU)["step"] == 2


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_checkpoint_that_is_written_anew_is_whole_at_every_moment(tmp_path, monkeypatch, killed):
    """It has the checksum of before until it is there, and that of now from then on."""
    save(tmp_path, 2, {"x": 1}, keep=1)
    replace = os.replace

    def kill(source, target):
        if killed == "before" and target.suffix == ".pt":
            raise KeyboardInterrupt
        replace(source, target)
        if killed == "after" and target.suffix == ".pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2, {"x": 2}, keep=1)
    assert load_newest(tmp_path, CPU)["x"] == (1 if killed == "before" else 2)
    flip_a_bit(tmp_path / "step-00000002.pt")
    with pytest.raises(UserError, match="its checksum is another"):
        load_newest(tmp_path, CPU)


def test_a_checksum_without_its_checkpoint_is_removed(tmp_path):
    save(tmp_path, 2, {}, keep=1)
    (tmp_path / "step-00000004.sha256").write_text("0\n")
    remove_leftovers(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pt", ".sha256"]


def test_one_more_than_the_newest_can_be_kept(tmp_path):
    for step in (2, 3, 4, 5):
        save(tmp_path, step, {}, keep=2, also=[2])
    assert [int(path.stem[5:]) for path in checkpoints(tmp_path)] == [2, 4, 5]
    assert checkpoints(tmp_path, 4)[-1].name == "step-00000004.pt"
    assert load_newest(tmp_path, CPU, up_to=3)["step"] == 2


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x80", b"", b"not a checksum\n", b"0" * 63])
def test_a_damaged_file_of_checksums_does_not_cost_a_whole_checkpoint(tmp_path, content):
    path = save(tmp_path, 1, {"x": torch.tensor(3)}, keep=1)
    path.with_suffix(".sha256").write_bytes(content)
    assert load_newest(tmp_path, CPU)["x"] == 3
    save(tmp_path, 1, {"x": torch.tensor(4)}, keep=1)
    assert load_newest(tmp_path, CPU)["x"] == 4
