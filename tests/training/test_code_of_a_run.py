"""Code that changes crops is run where its user names it, and never because a run does."""

import sys

import pytest

from dino_x.cli import main
from dino_x.config.presets import check
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.errors import UserError
from dino_x.training.prepare import check_stains
from tests.conftest import tiny_settings
from tests.training.runs import losses, pretrain

FLAGS = ("--effective-batch", 8, "--steps", 2, "--centering", "sinkhorn")
HOOK = """
import torch

def darker(crops, numbers):
    return crops * (1 - numbers[:, :1, None, None] / 2)
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A module in the current folder; its name."""
    name = f"code_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(HOOK)
    monkeypatch.chdir(tmp_path)
    yield f"{name}:darker"
    sys.modules.pop(name, None)


def unused(code):
    """Whether the module was not imported since the last look."""
    return sys.modules.pop(code.partition(":")[0], None) is None


@pytest.mark.slow
def test_it_is_said_and_gives_one_result_and_a_run_alone_does_not_start_it(
    code, films, tmp_path, capsys
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    named = {"views__extra": code, "data__verify": "headers"}
    assert pretrain(films, run, *FLAGS, "--micro-batch", 8, **named) == 0
    assert f"extra     {code} changes each crop ({tmp_path / code.split(':')[0]}.py)" in (
        capsys.readouterr().out
    )
    assert not unused(code)
    longer = ("--effective-batch", 8, "--steps", 4, "--centering", "sinkhorn", "--micro-batch", 8)
    assert main(["pretrain", "--out", str(run), "--resume", "--steps", "4"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"give --set views.extra={code} to resume with it" in said
    assert main(["pretrain", "--out", str(tmp_path / "next"), "--data", str(films), "--model",
                 str(run), "--steps", "1"]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"--set views.extra={code} to use it, or --set views.extra=null to go" in said
    assert not (tmp_path / "next").exists()
    assert unused(code)

    command = ["pretrain", "--out", str(run), "--resume", "--set", f"views.extra={code}"]
    assert main([*command, "--steps", "4"]) == 0
    assert not unused(code)
    small = (*longer[:-1], 2)
    assert pretrain(films, whole, *small, **named) == 0
    assert losses(run)[2:] == [pytest.approx(step, rel=1e-4) for step in losses(whole)[2:]]


def test_views_shows_what_it_does_and_all_commands_refuse_one_that_is_not_there(
    code, films, tmp_path, capsys
):
    flags = ["--data", str(films), *tiny_settings(views__extra=code)]
    assert main(["views", "--out", str(tmp_path / "views.png"), *flags]) == 0
    assert not unused(code)
    missing = ["--data", str(films), *tiny_settings(views__extra="not_there:f")]
    for command in (["views", "--out", "v.png"], ["plan"], ["pretrain", "--out", "run"]):
        capsys.readouterr()
        assert main([*command, *missing]) == 2
        assert capsys.readouterr().err.count("there is no module not_there") == 1
    assert not (tmp_path / "run").exists()


def test_stains_of_images_without_colours_are_refused(films, tmp_path, capsys):
    assert pretrain(films, tmp_path / "run", *FLAGS, views__stain=0.2) == 2
    assert "and the images are grey; set both to 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (CanvasForm(32, 3, slices=3), "data.slices=3 has slices for channels"),
        (CanvasForm(32, 5), "the images have 5 channels"),
        (CanvasForm(32, 3), None),
    ],
)
def test_stains_are_for_three_colours(form, message):
    options = check({"views.stain_shift": 0.1})
    if message is None:
        check_stains(options, form)
        return
    with pytest.raises(UserError, match=message):
        check_stains(options, form)
    check_stains(check({}), form)
