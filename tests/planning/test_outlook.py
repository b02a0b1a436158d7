"""What a long run says before its first step, and what a short one does not say."""

import pytest

from dino_x.commands import how_long
from dino_x.cost.gpus import GPUS
from dino_x.planning.outlook import Outlook, seconds_of_small
from tests.training.runs import metrics, pretrain

RUN = ("--effective-batch", 8, "--micro-batch", 4, "--steps", 2, "--centering", "sinkhorn")


def of(seconds, steps=235, small=180.0, gpu=400.0):
    return Outlook(seconds, steps, small, GPUS["rtx3090"], gpu, "bf16")


def test_a_long_run_says_what_ten_minutes_give_and_what_is_quicker():
    lines = of(seconds=20 * 3600).lines()
    assert lines["at first"] == "in 10 minutes 1 of 235 steps are done"
    assert lines["quicker"] == "--preset try: a very small network, about 3 min"
    assert lines["on a GPU"] == "by estimate 7 min on an NVIDIA GeForce RTX 3090 in bf16"
    assert "does not fit" in of(seconds=20 * 3600, gpu=None).lines()["on a GPU"]
    assert "quicker" not in of(seconds=20 * 3600, small=None).lines()


def test_a_short_run_says_nothing():
    assert of(seconds=599).lines() == {}


def test_the_small_run_takes_minutes_at_the_speed_of_a_core():
    assert 60 < seconds_of_small(7e10) < 1200
    assert seconds_of_small(7e10) == pytest.approx(2 * seconds_of_small(14e10))


def test_pretrain_says_it_before_the_first_step(films, tmp_path, capsys, monkeypatch):
    assert pretrain(films, tmp_path / "quick", *RUN) == 0
    assert "on this machine" not in capsys.readouterr().out  # and nothing was measured for it
    monkeypatch.setattr(how_long, "BEST_RATE", 1.0)
    monkeypatch.setattr(how_long, "QUICK", 0.0)
    measured = how_long.measure.seconds
    monkeypatch.setattr(how_long.measure, "seconds", lambda *of: measured(*of) + 1000)
    assert pretrain(films, tmp_path / "slow", *RUN) == 0
    out = capsys.readouterr().out
    assert "time      about 4.4 h on this machine, 2 h 13 min a step" in out
    assert "at first  in 10 minutes 0 of 2 steps are done" in out
    assert out.index("at first ") < out.index("step 2/2")
    kept = [[step["loss"] for step in metrics(tmp_path / name)] for name in ("quick", "slow")]
    assert kept[0] == kept[1]  # measuring changes nothing
