import pickle

import pytest
import torch

from dino_x.errors import UserError
from dino_x.training.checkpoint import checkpoints, load_newest, save, write_atomically

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
