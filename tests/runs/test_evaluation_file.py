"""evaluation.json may have been written by anybody: whole, of an older version, or damaged."""

import copy
import json
import random

import pytest

from dino_x.errors import UserError
from dino_x.report.write import report
from dino_x.runs.evaluation_file import read_evaluation
from tests.report.runs import OLD_EVALUATION, evaluation_of, figure, make_run


def with_details():
    found = evaluation_of(0.9)
    of_class = {"images": 50, "auroc": figure(0.9), "recall": None}
    curve = {"false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
    found["details"] = {
        "knn": {
            "confusion": [[40, 10], [5, 45]],
            "classes": {"ill": of_class, "well": of_class},
            "roc": {"ill": curve, "well": curve},
        }
    }
    figures = {"knn": {"20": {"balanced_accuracy": figure(0.9)}}}
    found["units"] = {
        "patient": {
            "count": 31, "mixed": 2, "results": {"model": figures}, "verdicts": {"knn": {}},
        }
    }  # fmt: skip
    return found


def places_in(value, place=()):
    """Every place in an object, as the keys that lead to it."""
    yield place
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    for key, part in inner:
        yield from places_in(part, (*place, key))


def changed(found, place, value):
    """A copy with another value at one place; with the key left out if the value is `places_in`."""
    found = copy.deepcopy(found)
    part = found
    for key in place[:-1]:
        part = part[key]
    if value is places_in:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return found


def test_a_whole_file_is_read(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(with_details()))
    assert read_evaluation(tmp_path / "evaluation.json") == with_details()


def test_the_first_version_gets_the_form_of_today(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(OLD_EVALUATION))
    results = read_evaluation(tmp_path / "evaluation.json")["results"]
    assert results["pixels"] == {
        "knn": {"20": {"balanced_accuracy": {"value": 0.78}, "auroc": {"value": 0.9}}}
    }


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("results", "model", "knn", "20", "auroc", "value"), "high", "auroc.value"),
        (("results", "random", "knn", "20", "auroc", "low"), float("nan"), "auroc.low"),
        (("counts", "test", "ill"), -1, "counts.test.ill"),
        (("details", "knn", "classes"), {}, "details.knn.classes"),
        (("details", "knn", "roc", "ill"), places_in, "ill"),
        (("verdicts", "knn"), places_in, "knn"),
        (("settings", "tested_split"), "val", "val"),
        (("warnings",), "careful", "warnings"),
    ],
)
def test_other_values_are_one_line_that_names_the_place(place, value, named, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(changed(with_details(), place, value)))
    with pytest.raises(UserError, match="something else than an evaluation, at .*" + named):
        read_evaluation(path)


def test_what_is_read_makes_a_page_and_all_else_is_one_line(tmp_path):
    """Whatever stands at one place: a page, or a line; never an error of the page's own code."""
    whole = with_details()
    run = make_run(tmp_path / "run", evaluation=whole)
    others = (None, "text", 17, -1.5, [], {}, [1], {"a": 1}, True, places_in)
    chosen = random.Random(0)
    said = []
    for place in list(places_in(whole))[1:]:
        damaged = changed(whole, place, chosen.choice(others))
        (run / "evaluation.json").write_text(json.dumps(damaged))
        said.append(line_of(run))
    assert said.count("") > 20
    assert sum("evaluation.json holds something else" in line for line in said) > 50


def line_of(run):
    """Make the page of a run: nothing, or the line that says why not."""
    try:
        report(run, images=False)
    except UserError as error:
        return str(error)
    return ""
