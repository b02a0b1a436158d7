"""Names of files that are not UTF-8, or that a terminal or rich would obey."""

import os
import re
import shutil
from pathlib import Path

import pytest
from rich.table import Table

from dino_x.cli import main
from dino_x.terminal import Terminal
from tests.training.runs import pretrain

FLAGS = ("--effective-batch", 4, "--micro-batch", 4, "--steps", 1)
SETTINGS = {"views__local_crops": 1, "online__every": 0, "data__verify": "headers"}


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9", b"run[v2]", b"[red]x", b"\x1b[31mred", b":smile: a  b", b"a\nb", b"%s {0}"],
    ids=repr,
)
def test_a_run_on_and_into_an_odd_name_shows_it_as_it_is(films, tmp_path, capsys, name):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    data = folder / os.fsdecode(name)
    data.mkdir(parents=True)
    for film in sorted(Path(films).rglob("*.png"))[:16]:
        shutil.copy(film, data / os.fsdecode(name + os.fsencode(film.name)))
    (data / os.fsdecode(name + b".png")).write_bytes(b"no image")
    run = folder / "run"
    assert pretrain(data, run, *FLAGS, **SETTINGS) == 0
    assert main(["index", str(data), "--out", str(folder / "i.parquet")]) == 0
    assert pretrain(folder / "i.parquet", folder / "run 2", *FLAGS, **SETTINGS) == 0
    assert pretrain(data, run, *FLAGS, **SETTINGS) == 2  # it is there already
    seen = capsys.readouterr()
    printed = seen.out + seen.err
    assert "\x1b[31m" not in printed
    spelled = re.sub(rb"[\x80-\xff\x1b]", lambda found: b"\\x%02x" % ord(found[0]), name).decode()
    if "\n" not in spelled:
        assert spelled in printed
    printed.encode()  # a terminal of UTF-8 can show it
    assert pretrain(data, run, *FLAGS, "--resume", **SETTINGS) == 0


def test_a_table_is_literal_too(capsys):
    table = Table("name", title="[b]t[/b]")
    table.add_row("run[v2] \x1b[31m :smile:")
    Terminal(width=60).print(table, "[b]also[/b]")
    printed = capsys.readouterr().out
    assert "run[v2] \\x1b[31m :smile:" in printed
    assert "[b]also[/b]" in printed
    assert "[b]t[/b]" in printed


def test_a_name_that_is_too_long_is_one_line(films, tmp_path, capsys):
    assert pretrain(films, tmp_path / ("x" * 300), *FLAGS, **SETTINGS) == 2
    assert pretrain(tmp_path / ("y" * 300), tmp_path / "run", *FLAGS, **SETTINGS) == 2
    assert main(["report", str(tmp_path / ("x" * 300))]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all("File name too long" in line or "no" in line for line in lines)
