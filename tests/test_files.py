"""Writing a file whole or not at all, whatever is in its place."""

import os
import stat
import threading

import pytest

from dino_x.files import is_device, write_json, write_text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As /dev/null and /dev/stdout, which root could replace."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text(pipe, "words")
    reader.join(10)
    assert read == ["words"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "a.json", tmp_path / "link.json"
    file.write_text("old")
    link.symlink_to(file)
    write_json(link, {"new": "caf\udce9"})
    assert link.is_symlink()
    assert "new" in file.read_text()
    assert not is_device(link)


def test_a_link_to_nothing_makes_the_file(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    write_text(link, "words")
    assert (tmp_path / "file").read_text() == "words"
    assert link.is_symlink()
