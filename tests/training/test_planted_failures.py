"""Runs broken on purpose: each is found within 200 steps and called by its name.

They are small runs of the product, with a mistake planted in the code or in the settings. Runs that
are not broken must be left alone, or nobody believes the others.
"""

import json

import pytest

from dino_x.exact import KoLeo
from tests.tiny import OLD_TRANSFORMERS
from tests.training.runs import metrics, pretrain

LEARNS = {  # a small run that learns: the small preset on the test's films
    "preset": "small", "head__prototypes": 64, "loss__centering": "sinkhorn", "optim__lr": 0.003,
    "views__local_crops": 0, "checkpoint__every": 1000, "online__every": 0,
    "teacher__momentum_batch": "null", "loss__center_batch": "null",  # quick, in few small steps
}  # fmt: skip
NO_KOLEO = {"loss__koleo_weight": 0}


def run(films, out, steps, batch=16, **settings):
    """Exit status and findings of a run."""
    flags = ("--effective-batch", batch, "--micro-batch", batch, "--steps", steps)
    status = pretrain(films, out, *flags, **LEARNS | settings)
    path = out / "health.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return status, [json.loads(line) for line in lines]


def first(findings, steps=200):
    """The first finding, which must be about the run's first ``steps`` steps."""
    assert findings, "nothing was found"
    assert findings[0]["step"] - findings[0]["since"] <= steps
    assert findings[0]["help"], "a finding says what may help"
    return findings[0]


@pytest.mark.skipif(OLD_TRANSFORMERS, reason="it draws other first weights")
def test_a_run_that_learns_is_left_alone(films, tmp_path, capsys):
    status, findings = run(films, tmp_path / "run", 51, batch=32)
    assert (status, findings) == (0, [])
    assert "health " not in capsys.readouterr().out
    last = metrics(tmp_path / "run")[-1]
    assert last["health/dino_of_log_k"] < 0.95, "it must learn, or the test shows nothing"


@pytest.mark.parametrize("planted", ["momentum 0", "one object"])
def test_a_teacher_that_is_the_student(films, tmp_path, monkeypatch, planted):
    settings = {"teacher__momentum": 0, "teacher__momentum_end": 0}
    if planted == "one object":
        settings = {}
        monkeypatch.setattr("dino_x.training.build.build_teacher", lambda student: student)
    _, findings = run(films, tmp_path / "run", 25, batch=4, **NO_KOLEO | settings)
    found = first(findings)
    assert found["state"] == "teacher-is-student"
    assert ("teacher.momentum=0.9" in found["help"][0]) == (planted == "momentum 0")


@pytest.mark.parametrize("planted", ["momentum 1", "no update"])
def test_a_teacher_that_never_moves(films, tmp_path, monkeypatch, planted):
    settings = {"teacher__momentum": 1} if planted == "momentum 1" else {}
    if planted == "no update":
        monkeypatch.setattr("dino_x.training.steps.update_teacher", lambda *arguments: None)
    settings |= NO_KOLEO | {"health__every": 10}
    _, findings = run(films, tmp_path / "run", 21, batch=4, **settings)
    assert first(findings)["state"] == "teacher-frozen"


def test_a_center_that_is_never_updated_with_a_cold_temperature(films, tmp_path, monkeypatch):
    monkeypatch.setattr("dino_x.exact.centering.next_center", lambda center, *arguments: center)
    settings = {
        "loss__centering": "softmax", "teacher__temperature": 0.005,
        "teacher__temperature_start": 0.005, "health__every": 10, "optim__lr": 0.02,
    }  # fmt: skip
    _, findings = run(films, tmp_path / "run", 50, **settings)
    found = first(findings)
    assert found["state"] == "point"
    assert "teacher.temperature=0.04" in found["help"][1]


def test_koleo_off_with_a_hot_rate(films, tmp_path):
    # At 0.3 it is a matter of rounding whether features are a point or a few dimensions first.
    settings = NO_KOLEO | {"optim__lr": 0.07, "health__every": 10}
    _, findings = run(films, tmp_path / "run", 40, batch=32, **settings)
    found = first(findings)
    assert found["state"] == "dimensional"
    assert [line.partition("=")[0] for line in found["help"]] == [
        "loss.koleo_weight", "optim.lr", "optim.warmup",
    ]  # fmt: skip


def test_sinkhorn_with_batches_of_one(films, tmp_path, capsys):
    _, findings = run(films, tmp_path / "run", 151, batch=1, **NO_KOLEO)
    found = first(findings)
    assert (found["state"], found["since"]) == ("uniform", 1)
    assert "train.effective_batch=256" in found["help"][0]
    assert len(findings) == 1, "it is said once"
    out = capsys.readouterr().out
    assert out.count("uniform since step 1: targets are spread over all 64 prototypes") == 1
    assert out.count("try train.effective_batch=256: ") == 1


def test_nan(films, tmp_path, monkeypatch, capsys):
    steps, true = [], KoLeo.value

    def nan_in_the_third_step(self, cls_VBF, images):
        steps.append(1)  # all images are one micro-batch
        return true(self, cls_VBF, images) * (float("nan") if len(steps) > 2 else 1)

    monkeypatch.setattr(KoLeo, "value", nan_in_the_third_step)
    status, findings = run(films, tmp_path / "run", 9, batch=8, train__skip_not_finite=0)
    assert status == 2
    assert "stopped at step 3: koleo is nan" in capsys.readouterr().err
    found = first(findings)
    assert (found["state"], found["step"], found["since"]) == ("diverging", 3, 3)
    assert "koleo is nan" in found["seen"]


def test_on_collapse_stop_saves_a_checkpoint_and_stops(films, tmp_path, capsys):
    settings = NO_KOLEO | {
        "teacher__momentum": 0, "teacher__momentum_end": 0, "health__on_collapse": "stop",
    }  # fmt: skip
    out = tmp_path / "run"
    status, findings = run(films, out, 30, batch=4, **settings)
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "stopped after step 25: teacher-is-student since step 1" in error
    assert (out / "checkpoints" / "step-00000025.pt").is_file()
    assert len(metrics(out)) == 25
    assert (
        pretrain(films, out, "--resume", health__on_collapse="warn", **settings_of(settings)) == 0
    )
    assert len(metrics(out)) == 30
    again = [json.loads(line) for line in (out / "health.jsonl").read_text().splitlines()]
    assert again == findings, "what is known already is not found again"


def settings_of(settings):
    return {name: value for name, value in (LEARNS | settings).items() if "health" not in name}
