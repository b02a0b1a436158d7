"""A tiny run and a tiny bare backbone, and what the command leaves for each."""

import io

import pytest
from rich.console import Console

from dino_x.audit import batch_floor
from tests.evaluation.conftest import save_tiny
from tests.training.runs import pretrain


@pytest.fixture(scope="session")
def tiny_run(films, tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert pretrain(films, out, train__steps=2, train__effective_batch=8, train__micro_batch=8,
                    loss__centering="sinkhorn", head__init="fan_in") == 0  # fmt: skip
    return out


@pytest.fixture(scope="session")
def bare_backbone(tmp_path_factory):
    """A backbone of one channel without a head."""
    folder = tmp_path_factory.mktemp("backbone")
    save_tiny(folder)
    return folder


def measured(model, films, out, **more):
    """The result and what was printed."""
    text = io.StringIO()
    result = batch_floor(
        model, [films], out, Console(file=text, width=200), **({"repeats": 2} | more)
    )
    return result, text.getvalue()


@pytest.fixture(scope="session")
def of_run(tiny_run, films, tmp_path_factory):
    """(result, printed, folder) of the run."""
    out = tmp_path_factory.mktemp("floor") / "out"
    return *measured(tiny_run, films, out), out
