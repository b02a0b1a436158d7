"""The notebook of the first run, cell by cell, on a few of its films."""

import csv
import json

import matplotlib
import pytest

import dino_x.demo
from tests.docs.pages import DOCS


@pytest.fixture
def few_films(tmp_path, monkeypatch):
    """48 of the package's films: 24 to train on and 24 of other patients."""
    with open(dino_x.demo.demo_labels(), newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = []
    for split in ("train", "test"):
        for label in ("normal", "pneumonia"):
            of_both = [row for row in rows if (row["split"], row["label"]) == (split, label)]
            chosen += of_both[:12]
    source = dino_x.demo.demo_folder()
    for row in chosen:
        place = tmp_path / "demo" / row["path"]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source / row["path"])
    with open(tmp_path / "demo" / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    monkeypatch.setattr(dino_x.demo, "demo_folder", lambda: tmp_path / "demo")
    monkeypatch.setattr(dino_x.demo, "demo_labels", lambda: tmp_path / "demo" / "manifest.csv")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_the_notebook_runs_cell_by_cell(few_films, capsys):
    matplotlib.use("agg")
    notebook = json.loads((DOCS / "first_run.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    whole = "STEPS, BATCH = 240, 64"
    assert sum(whole in cell for cell in cells) == 1
    names: dict = {}
    for number, cell in enumerate(cells):
        shorter = cell.replace(whole, "STEPS, BATCH = 2, 16")
        exec(compile(shorter, f"cell {number}", "exec"), names)
    assert len(names["steps"]) == 2
    assert names["places"].shape == (48, 2)
    assert names["page"].is_file()
    assert "Was it worth it?" in capsys.readouterr().out


def test_it_is_kept_without_outputs():
    notebook = json.loads((DOCS / "first_run.ipynb").read_text(encoding="utf-8"))
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)
