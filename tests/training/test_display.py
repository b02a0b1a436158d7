"""What is seen of a run while it trains, at the widths that terminals have."""

import io
import time

import pytest
from rich.console import Console

from dino_x.training import report as reports
from dino_x.training.display import Display
from dino_x.training.step.passes import Passes
from tests.training.runs import pretrain

DETAILS = ["kNN 0.866", "9.7 img/s", "0.7 GiB", "dino 4.994", "ibot 3.636", "log K 5.55"]
RUN = ("--effective-batch", 8, "--micro-batch", 2, "--steps", 3, "--centering", "sinkhorn")


def shown(width, **more):
    """The lines that are seen at a width."""
    display = Display(steps=120, began=time.monotonic() - 600)
    display.step_done(60, "loss 6.843", "diverging since step 40", DETAILS)
    display.passes = Passes(("targets", "statistic", "gradients"), 16, 35)
    screen = io.StringIO()
    Console(file=screen, width=width, force_terminal=True, color_system=None).print(display)
    return [line.rstrip() for line in screen.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_step_time_left_loss_and_health_are_seen_at_any_width(width):
    first, second = shown(width)
    for what in ("step 60/120", "min", "left", "loss 6.843", "diverging since step 40"):
        assert what in f"{first} {second}", (width, what)
    assert "gradients 3/16  kNN 0.866" in second
    assert max(len(first), len(second)) <= width


def test_one_line_where_there_is_room():
    (line,) = shown(170)
    assert "diverging since step 40  gradients 3/16" in line
    assert line.endswith("log K 5.55")


def test_the_time_left_counts_what_is_done_of_the_first_step():
    display = Display(steps=10, began=time.monotonic() - 60)
    assert display.left == ""
    display.passes = Passes(("targets", "gradients"), 10, 10)  # a fifth of the work
    assert display.left in ("49 min 00 s left", "49 min 01 s left")
    assert "first step" in display.text


def test_a_log_has_lines_of_steps_and_of_long_steps(films, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reports, "LINE_SECONDS_WITHIN", -1.0)
    assert pretrain(films, tmp_path / "run", *RUN) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    parts = [line.split("  ") for line in lines]
    of_first = [part[-1] for part in parts if part[0] == "step 0/3"]
    phases = ("targets", "statistic", "gradients")
    assert of_first[:12] == [f"{phase} {n}/4" for phase in phases for n in range(1, 5)]
    assert of_first[12:] == [f"evaluating {n}/40" for n in range(2, 42, 2)]
    assert lines[-1].startswith("step 3/3  0 s left  loss ")


def test_messages_are_above_what_moves(films, tmp_path):
    """A finding of health is printed as a line of its own, whole, while the bar is there."""
    from dino_x.runs.folder import RunFolder

    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    report = reports.TrainingReport(RunFolder(tmp_path), console, 10, 0, 64)
    with report:
        report.within(Passes(("targets", "gradients"), 2, 1))
        report.finding("uniform since step 1: " + "targets are spread " * 8)
    text = screen.getvalue()
    assert "uniform since step 1: " + "targets are spread " * 8 in text.replace("\n", "")
    assert text.rindex("targets 1/2") > text.index("uniform since step 1")
