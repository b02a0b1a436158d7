"""Health observes: it changes nothing, is the same for every micro-batch, and survives a resume."""

import json

import pytest
import torch

from dino_x.config.options import HealthOptions, OnlineOptions
from dino_x.config.presets import check
from dino_x.training.health.health import Finding, Health
from dino_x.training.health.states import State
from tests.conftest import TINY
from tests.training.runs import metrics, pretrain, weights

FLAGS = ("--effective-batch", 8, "--steps", 3, "--centering", "sinkhorn")
EVERY_STEP = ("student/rankme", "teacher/feature_std", "target_entropy", "patch_similarity",
              "koleo_distance", "update_ratio", "teacher_distance", "prototypes")  # fmt: skip


@pytest.fixture(scope="module")
def watched(films, tmp_path_factory):
    """A run that is looked at and evaluated in every step."""
    out = tmp_path_factory.mktemp("runs") / "watched"
    settings = {"health__every": 1, "online__every": 1}
    assert pretrain(films, out, *FLAGS, "--micro-batch", 4, **settings) == 0
    return out


def test_it_and_the_online_evaluation_change_nothing(films, tmp_path, watched):
    settings = {"health__every": 0, "online__every": 0}
    out = tmp_path / "not watched"
    assert pretrain(films, out, *FLAGS, "--micro-batch", 4, **settings) == 0
    assert not any("health" in key or "online" in key for line in metrics(out) for key in line)
    before, after = weights(out, 3), weights(watched, 3)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_all_promised_numbers_are_there_and_finite(watched):
    for line in metrics(watched):
        for name in EVERY_STEP:
            assert torch.tensor(line[f"health/{name}"]).isfinite(), name
        for part in ("patch_embedding", "layers", "dino_head", "ibot_head", "layer_01"):
            assert line[f"health/gradient/{part}"] >= 0
        assert line["health/rows"] == 16
        assert 0 <= line["online/retrieval_top1"] <= 1
        parts = [line[f"health/gradient/{p}"] for p in ("patch_embedding", "layers", "dino_head",
                                                        "ibot_head")]  # fmt: skip
        whole = sum(norm**2 for norm in parts) ** 0.5
        assert whole == pytest.approx(line["gradient_norm"], rel=1e-4)
    assert "health/teacher_moved" in metrics(watched)[1]


def test_looks_are_at_the_first_step_every_so_many_and_the_last(films, tmp_path):
    out = tmp_path / "run"
    flags = ("--effective-batch", 4, "--micro-batch", 4, "--steps", 7)
    assert pretrain(films, out, *flags, health__every=3, online__every=4) == 0
    looked = [line["step"] for line in metrics(out) if "health/rows" in line]
    assert looked == [1, 3, 6, 7]
    evaluated = [line["step"] for line in metrics(out) if "online/retrieval_top1" in line]
    assert evaluated == [1, 4, 7]
    assert all("health/gradient/layers" in line for line in metrics(out))


def health(tmp_path, **settings):
    options = check(TINY | {name.replace("__", "."): value for name, value in settings.items()})
    return Health(options, 32, tmp_path / "health.jsonl")


def judged(watch, monkeypatch, held):
    """What is new at each of some looks, where the states that hold are given."""
    news = []
    for step, names in enumerate(held, start=1):
        found = [State(name, 7, f"{name} was seen") for name in names]
        monkeypatch.setattr("dino_x.training.health.health.states", lambda history, f=found: f)
        monkeypatch.setattr(watch.history, "add", lambda line: True)
        monkeypatch.setattr("dino_x.training.health.health.diverging", lambda history: None)
        news += [(f.step, f.state, f.resolved) for f in watch.judge({"step": step})]
    return news


def test_a_state_is_said_once_and_again_when_it_is_over(tmp_path, monkeypatch):
    watch = health(tmp_path)
    held = [[], ["uniform"], ["uniform"], [], ["uniform"], [], [], ["point"]]
    news = judged(watch, monkeypatch, held)
    assert news == [(2, "uniform", False), (7, "uniform", True), (8, "point", False)]
    lines = [json.loads(line) for line in watch.path.read_text().splitlines()]
    assert [(x["step"], x["state"], x["resolved"]) for x in lines] == news
    assert set(lines[0]) == {"step", "since", "state", "seen", "help", "resolved"}
    assert 2 <= len(lines[0]["help"]) <= 3


def test_findings_are_taken_up_after_a_resume(tmp_path, monkeypatch):
    watch = health(tmp_path)
    judged(watch, monkeypatch, [["uniform"], ["point"], ["point"]])
    again = health(tmp_path)
    again.resume([], (json.loads(line) for line in watch.path.read_text().splitlines()))
    assert again.active == watch.active
    assert list(again.active) == ["point"]


def test_a_run_in_warmup_is_not_stopped_for_not_having_started(tmp_path, monkeypatch):
    watch = health(tmp_path, health__on_collapse="stop", optim__warmup=100)
    judged(watch, monkeypatch, [["uniform"]])
    monkeypatch.setattr(watch.history, "steps", [{"step": 99}])
    assert watch.stop() is None
    assert "in warmup (until step 100)" in watch.active["uniform"].seen
    monkeypatch.setattr(watch.history, "steps", [{"step": 100}])
    assert watch.stop().state == "uniform"
    judged(watch, monkeypatch, [["point"]])
    monkeypatch.setattr(watch.history, "steps", [{"step": 10}])
    assert watch.stop().state == "point"


def test_a_paragraph_says_what_since_when_and_what_may_help():
    finding = Finding(150, 25, "uniform", "targets are spread", ["a.b=1: more", "c.d=2: less"])
    assert finding.paragraph().splitlines() == [
        "health    uniform since step 25: targets are spread.",
        "          try a.b=1: more",
        "              c.d=2: less",
    ]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [(HealthOptions, {"every": -1}), (HealthOptions, {"rows": 3}),
     (HealthOptions, {"on_collapse": "panic"}), (OnlineOptions, {"every": -1}),
     (OnlineOptions, {"images": 1})],
)  # fmt: skip
def test_wrong_options_are_refused(options, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        options(**wrong)
