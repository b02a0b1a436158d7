"""The page of a run that is training is written again until the run ends."""

import io
import json

import pytest
from rich.console import Console

from dino_x.cli import main
from dino_x.errors import UserError
from dino_x.report.watch import watch
from tests.report.pages import check
from tests.report.runs import STEPS, make_run, numbers


def test_the_page_is_written_until_the_run_ends(tmp_path):
    run = make_run(tmp_path / "run", done=10)
    pages, said = [], io.StringIO()

    def wait(seconds):
        assert seconds == 30
        pages.append((run / "report.html").read_text())
        done = len((run / "metrics.jsonl").read_text().splitlines())
        if len(pages) == 2:
            return  # no step was finished meanwhile: the page stays
        more = [json.dumps(numbers(step, True)) for step in range(done + 1, done + 16)]
        with (run / "metrics.jsonl").open("a") as file:
            file.writelines(f"{line}\n" for line in more[: STEPS - done])

    watch(run, None, Console(file=said, width=200), every=30, wait=wait)
    assert [page.count('http-equiv="refresh" content="30"') for page in pages] == [1] * len(pages)
    assert "training, 10 of 40 steps" in check(pages[0]).text
    assert pages[1] == pages[2]
    last = (run / "report.html").read_text()
    assert "finished after 40 steps" in check(last).text
    assert "refresh" not in last.split("<title>")[0]
    assert said.getvalue().count("step 25 of 40") == 1


def test_ctrl_c_leaves_a_page_that_stays(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    page = watch(make_run(tmp_path / "run", done=10), None, Console(quiet=True), wait=interrupted)
    assert "refresh" not in page.read_text().split("<title>")[0]


def test_watching_too_often_or_nothing_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", done=10)
    with pytest.raises(UserError, match="every 5 s at most"):
        watch(run, None, Console(quiet=True), every=1)
    assert main(["report", str(tmp_path / "none"), "--watch"]) == 2
    assert "is not there; name the folder" in capsys.readouterr().err
