"""Reading a RUN: finished, going on, killed while writing, made by other versions."""

import json

import numpy as np

from dino_x.report.run_data import read_run
from tests.report.runs import STEPS, evaluation_of, make_run, write_findings


def test_everything_a_run_says(tmp_path):
    run = make_run(tmp_path / "run", evaluation=evaluation_of(0.9))
    (run / "skipped.csv").write_text('path,reason\n/a.png,damaged\n"/b\nc.png",damaged\n')
    data = read_run(run)
    assert (data.name, data.images, data.done, data.steps) == ("run", 1234, STEPS, STEPS)
    assert data.finished
    assert not data.is_training
    assert data.seconds == STEPS * 16 / 8
    assert data.facts["device"] == "CPU, 1 thread"
    assert data.settings["head.prototypes"] == 64
    assert data.skipped == 2
    assert data.model_step is None
    assert list(data.curves["health/student/rankme"].steps[:3]) == [1, 5, 10]


def test_half_lines_and_what_is_no_number_are_passed_over(tmp_path):
    run = make_run(tmp_path / "run", done=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "dino": NaN, "ibot": 2.0, "note": "x", "flag": true}\n')
        file.write('[1, 2]\n{"dino": 3.0}\n{"step": true, "dino": 9}\n\n{"step": 5, "di')
    data = read_run(run)
    assert data.done == 4
    assert list(data.curves["dino"].steps) == [1, 2, 3]
    assert list(data.curves["ibot"].steps) == [1, 2, 3, 4]
    assert {"note", "flag", "step"}.isdisjoint(data.curves)


def test_a_step_that_is_there_twice_counts_as_last_written(tmp_path):
    run = make_run(tmp_path / "run", done=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "dino": 7.5}\n')
    curve = read_run(run).curves["dino"]
    assert list(curve.steps) == [1, 2, 3]
    assert curve.values[1] == 7.5


def test_findings_end_where_they_are_resolved(tmp_path):
    run = make_run(tmp_path / "run")
    write_findings(run)
    with (run / "health.jsonl").open("a") as file:
        file.write('{"step": 36, "since": 30, "state": "dimensional", "seen": "8", "help": []}\n')
        file.write('{"step": 40, "since')
    found = read_run(run).findings
    assert [(f.state, f.since, f.until) for f in found] == [
        ("uniform", 5, 20), ("dimensional", 30, None),
    ]  # fmt: skip
    assert found[1].seen == "8"  # said again: the last counts


def test_no_health_is_not_good_health(tmp_path):
    assert read_run(make_run(tmp_path / "a", health=False)).findings is None
    assert read_run(make_run(tmp_path / "b")).findings == []


def test_a_damaged_evaluation_is_none(tmp_path):
    run = make_run(tmp_path / "run")
    for text in ("{", "[]", '{"results": {}}', json.dumps({"results": 3})):
        (run / "evaluation.json").write_text(text)
        assert read_run(run).evaluation is None


def test_a_run_without_a_single_file_but_its_settings(tmp_path):
    run = make_run(tmp_path / "run", done=0)
    (run / "metrics.jsonl").unlink()
    data = read_run(run)
    assert (data.done, data.curves, data.quiet_seconds, data.snapshots) == (0, {}, None, {})
    assert data.seconds is None
    assert np.isfinite(data.steps)
