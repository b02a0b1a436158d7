"""Runs side by side."""

import io
import shutil

import pytest
from rich.console import Console

from dino_x.cli import main
from dino_x.report.compare import compare, compare_page
from dino_x.report.terminal import print_comparison
from tests.report.pages import check
from tests.report.runs import evaluation_of, make_run, write_findings


@pytest.fixture
def two(tmp_path):
    """Two runs that differ in the rate, evaluated alike."""
    return [
        make_run(tmp_path / "one", evaluation=evaluation_of(0.80), data__paths=["/x"]),
        make_run(
            tmp_path / "two", evaluation=evaluation_of(0.87), data__paths=["/x"], optim__lr=0.01
        ),
    ]


def printed(result):
    stream = io.StringIO()
    print_comparison(result, Console(file=stream, width=140))
    return stream.getvalue()


def test_only_what_differs_is_listed(two):
    result = compare(two)
    assert [(d.name, d.values) for d in result.differences] == [("optim.lr", ["0.0015", "0.01"])]
    assert result.names == ["A: one", "B: two"]
    assert result.flags == []


def test_differences_are_held_against_the_intervals(two):
    found = {(c.task, c.setting): item for item in compare(two).scored for c in [item.comparison]}
    assert found["knn", "20"].against == ["B - A = +0.070 (beyond the intervals)."]
    near = make_run(two[0].parent / "near", evaluation=evaluation_of(0.82), data__paths=["/x"])
    against = compare([two[0], near]).scored[0].against
    assert against == ["B - A = +0.020 (the intervals overlap: may be chance)."]


def test_the_figures_of_the_verdicts_come_first(two):
    heads = [item.comparison for item in compare(two).scored if item.headline]
    assert [(c.task, c.setting, c.metric) for c in heads] == [
        ("knn", "20", "balanced_accuracy"), ("linear", "all", "balanced_accuracy"),
    ]  # fmt: skip


def test_runs_on_other_data_are_flagged(two, tmp_path):
    assert compare([two[0], two[1]]).flags == []
    elsewhere = make_run(tmp_path / "c", data__paths=["/y"], evaluation=evaluation_of(0.8))
    assert "data.paths differ" in " ".join(compare([two[0], elsewhere]).flags)
    config = elsewhere / "config.yaml"
    config.write_text(config.read_text().replace("1,234", "999"))
    assert "different data: A 1,234, B 999 images" in " ".join(compare([two[0], elsewhere]).flags)


def test_the_images_decide_not_where_they_lie(real_run, tmp_path):
    """A run that was moved with its data, by the hash in its checkpoint."""
    moved = shutil.copytree(real_run, tmp_path / "moved")
    config = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(config.replace("films0", "films-moved"))
    result = compare([real_run, moved])
    assert [d.name for d in result.differences] == ["data.paths"]
    assert result.flags == []


def test_other_evaluations_are_flagged_and_not_compared(two, tmp_path):
    other = make_run(tmp_path / "c", evaluation=evaluation_of(0.9, images=50), data__paths=["/x"])
    result = compare([two[0], other])
    assert "evaluated on different images" in " ".join(result.flags)
    assert all(item.against == [] for item in result.scored)
    assert list(result.scored[0].comparison.scores) == ["A: one", "B: c"]  # no common baseline


def test_what_is_missing_is_said(two, tmp_path):
    short = make_run(tmp_path / "short", done=7, data__paths=["/x"], head__prototypes=128)
    flags = " ".join(compare([two[0], short]).flags)
    for words in ("B is not finished", "B is not evaluated", "not on one scale (head.prototypes"):
        assert words in flags


def test_final_numbers_are_means_of_the_last_tenth(two):
    import numpy as np

    expected = np.mean([3 + np.exp(-step / 20) for step in (37, 38, 39, 40)])
    values = dict(compare(two).finals)["Loss terms: DINO"]
    assert values == [f"{expected:.2f}"] * 2


def test_the_terminal_says_it_all(two):
    write_findings(two[1])
    text = printed(compare(two))
    for words in ("optim.lr", "raw pixels", "B - A = +0.070", "uniform, over; dimensional"):
        assert words in text
    assert "0.870 (0.850 to 0.890)" in text


def test_the_page_is_whole_and_names_no_path(two, tmp_path):
    out = tmp_path / "compare.html"
    other = make_run(tmp_path / "c", data__paths=["/home/Jane/films"], done=0)
    compare_page([*two, other], out)
    page = check(out.read_text())
    assert "A: one, B: two, C: c" in page.text
    assert "B - A = +0.070 (beyond the intervals)." in page.text
    assert "Jane" not in out.read_text()
    assert out.read_text().count('<svg class="chart"') >= 5


def test_identical_runs_and_six_of_them(two, tmp_path, capsys):
    assert main(["compare", *map(str, [two[0]] * 6), "--out", str(tmp_path / "c.html")]) == 0
    assert "All settings are the same." in capsys.readouterr().out
    assert main(["compare", *map(str, [two[0]] * 7)]) == 2
    assert "takes 2 to 6 runs, got 7" in capsys.readouterr().err
