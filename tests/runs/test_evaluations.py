"""Where the result of an evaluation goes."""

import json
from pathlib import Path

from dino_x.runs.evaluations import keep_former, place_of
from tests.report.runs import evaluation_of, make_run


def test_the_evaluation_of_a_run_goes_into_the_run_and_others_here(tmp_path):
    run = make_run(tmp_path / "run", done=1)
    (run / "model").mkdir()
    assert place_of(run) == place_of(str(run / "model")) == run / "evaluation.json"
    for other in (f"{run}@step-00000001", tmp_path, "facebook/dinov2-small"):
        assert place_of(other) == Path("evaluation.json")


def test_an_evaluation_on_other_labels_is_kept_under_another_name(tmp_path):
    path = tmp_path / "evaluation.json"
    first = evaluation_of(0.8)
    assert keep_former(path, first) is None
    path.write_text(json.dumps(first))
    assert keep_former(path, evaluation_of(0.9)) is None  # the same labels
    other = first | {"settings": first["settings"] | {"labels": "other.csv"}}
    assert keep_former(path, other) == tmp_path / "evaluation-1.json"
    assert not path.exists()
    path.write_text(json.dumps(first))
    both = first | {"settings": first["settings"] | {"features": "cls+mean"}}
    assert keep_former(path, both) == tmp_path / "evaluation-2.json"
    path.write_text("half of a fi")
    assert keep_former(path, first) == tmp_path / "evaluation-3.json"
    assert json.loads((tmp_path / "evaluation-1.json").read_text()) == first
