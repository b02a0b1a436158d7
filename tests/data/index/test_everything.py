"""A folder with everything in it is indexed, summed up in 25 lines and trained from."""

import re
from pathlib import Path

import pytest

from dino_x.cli import main
from dino_x.data.index.table import read_table
from tests.data.index.everything import make_everything
from tests.training.runs import losses, pretrain

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


@pytest.fixture
def everything(tmp_path, monkeypatch):
    make_everything(tmp_path / "everything")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return Path("everything")


def test_the_summary_in_the_documentation_is_true(everything, capsys):
    assert main(["index", str(everything), "--out", "index.parquet"]) == 0
    printed = capsys.readouterr().out.rstrip().splitlines()
    found = re.search(r"\$ dino-x index everything .*?\n((    .*\n)+)", PAGE.read_text())
    assert found is not None
    assert printed == [line[4:] for line in found[1].rstrip().splitlines()]
    assert len(printed) <= 25
    assert max(map(len, printed)) <= 80


def test_every_file_is_in_the_summary(everything, capsys):
    """What is used, left out, unusable or passed over are all files that there are."""
    assert main(["index", str(everything), "--out", "index.parquet"]) == 0
    table = read_table(Path("index.parquet"))
    usable = {record.path for record in table.records if record.refs}
    others = [record for record in table.records if not record.refs]
    files = [path for path in everything.rglob("*") if path.is_file()]
    inside = 3  # pictures in an archive
    assert len(usable) - inside + len(others) + sum(table.passed_over.values()) == len(files)
    printed = " ".join(capsys.readouterr().out.split())
    for said in (
        "66 in 41 files", "segmentation (12), mask (6), localizer (1)", "unusable 4 files",
        "1 .mnc: convert them to .nii.gz (mnc2nii)", "set data.axes, volumes/unclear.npy",
    ):  # fmt: skip
        assert said in printed


@pytest.mark.slow
def test_it_is_trained_from(everything, tmp_path):
    small = ("--effective-batch", 16, "--micro-batch", 8, "--steps", 2)
    assert pretrain(everything, tmp_path / "run", *small) == 0
    assert len(losses(tmp_path / "run")) == 2
