"""A real run and pages of it, made once."""

import pytest

from dino_x.report.write import report
from tests.report.runs import evaluation_of, make_run, write_findings
from tests.training.runs import pretrain

QUICK = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 4, "--centering", "sinkhorn")


@pytest.fixture(scope="session")
def real_run(films, tmp_path_factory):
    """A finished run of four steps, evaluated, with its page."""
    out = tmp_path_factory.mktemp("real") / "run"
    assert pretrain(films, out, *QUICK, "--labels", "folder", report__page=True) == 0
    return out


@pytest.fixture(scope="session")
def full_page(tmp_path_factory):
    """The source of a page with findings and an evaluation, but no images."""
    run = make_run(tmp_path_factory.mktemp("full") / "run", evaluation=evaluation_of(0.85))
    write_findings(run)
    return report(run).read_text()
