"""Several labels an image, and numbers: told from frozen features, beside the same baselines."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from rich.console import Console
from sklearn.metrics import average_precision_score, r2_score

from dino_x.cli import main
from dino_x.data.index.index import build_index
from dino_x.data.index.label_kinds import targets_of
from dino_x.data.index.labels import load_labels
from dino_x.errors import UserError
from dino_x.evaluation.bootstrap import average_precision_of_draws, draw_patients
from dino_x.evaluation.other_targets import OtherTargets, label_metrics, number_metrics
from dino_x.evaluation.suite import evaluate
from dino_x.evaluation.table import print_table
from tests.evaluation.conftest import write_csv, write_image

COUNT = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixty images; every second is bright."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        write_image(folder / f"{number:02d}.png", number, bright=bool(number % 2))
    return folder


def rows(**columns):
    """A row an image, with values from functions of its number."""
    found = []
    for number in range(COUNT):
        row = {"path": f"{number:02d}.png", "patient": f"p{number // 2}"}
        found.append(row | {name: value(number) for name, value in columns.items()})
    return found


def label_text(number):
    return "|".join(["bright"] * (number % 2) + ["third"] * (number % 3 == 0)) or "|"


def labelled_of(images, table, column="label"):
    refs = build_index([images], verify="headers").rows
    return load_labels(table, refs, [images], label_column=column, with_val=True)


def test_labels_between_bars_and_columns_of_0_and_1_are_the_same(images, tmp_path):
    bars = write_csv(tmp_path / "bars.csv", rows(label=label_text))
    columns = write_csv(
        tmp_path / "columns.csv",
        rows(bright=lambda n: str(n % 2), third=lambda n: "1.0" if n % 3 == 0 else ""),
    )
    one, other = labelled_of(images, bars), labelled_of(images, columns, "bright,third")
    assert one.targets.names == other.targets.names == ("bright", "third")
    np.testing.assert_array_equal(one.targets.values_NL, other.targets.values_NL)
    assert one.is_test.tolist() == other.is_test.tolist()
    train = set(one.patients[one.is_train])
    assert not train & set(one.patients[one.is_test])


def test_more_than_20_numbers_are_numbers_and_fewer_are_classes():
    assert targets_of([str(n % 5) for n in range(100)], "grade") is None
    assert targets_of([str(n / 2) for n in range(100)], "age").kind == "numbers"
    assert targets_of(["a", "b"], "label") is None
    with pytest.raises(UserError, match="1 values such as 'old' that are none"):
        targets_of([*(str(n) for n in range(100)), "old"], "age")


def test_average_precision_of_draws_is_scikit_learns_with_weights():
    rng = np.random.default_rng(0)
    true, scores = rng.integers(0, 2, 57), rng.integers(0, 8, 57) / 8.0  # with ties
    draws = draw_patients(np.array([f"p{n // 3}" for n in range(57)]), seed=1, draws=40)
    expected = [
        average_precision_score(true, scores, sample_weight=weights)
        for weights in draws.counts_RP[:, draws.patient_Q]
    ]
    np.testing.assert_allclose(average_precision_of_draws(draws, true, scores), expected)


def test_numbers_have_scikit_learns_r2_on_each_draw():
    rng = np.random.default_rng(0)
    true = rng.normal(size=41)
    found = true + rng.normal(size=41) / 2
    draws = draw_patients(np.arange(41).astype(str), seed=1, draws=20)
    metrics = number_metrics(draws, true, found)
    expected = [r2_score(true, found, sample_weight=w) for w in draws.counts_RP[:, draws.patient_Q]]
    np.testing.assert_allclose(metrics["r2"].draws_R, expected)
    assert metrics["mae"].value == pytest.approx(np.abs(found - true).mean())


def test_a_label_that_the_features_hold_is_told(images, tmp_path):
    labelled = labelled_of(images, write_csv(tmp_path / "labels.csv", rows(label=label_text)))
    numbers = np.array([int(ref.path.stem) for ref in labelled.refs])
    rng = np.random.default_rng(0)
    features = rng.normal(size=(COUNT, 8)).astype(np.float32) / 4
    features[:, 0] += numbers % 2
    features[:, 1] += numbers % 3 == 0
    scorer = OtherTargets(labelled, labelled.targets, 0, [5])
    assert scorer.score("linear", "model", features)["all"]["auroc"].value > 0.95
    assert scorer.score("knn", "model", features)["5"]["auroc"].value > 0.9
    noise = rng.normal(size=(COUNT, 8)).astype(np.float32)
    assert scorer.score("linear", "noise", noise)["all"]["auroc"].value < 0.8


def test_label_metrics_are_means_over_labels():
    rng = np.random.default_rng(2)
    true, scores = rng.integers(0, 2, (50, 3)), rng.normal(size=(50, 3))
    draws = draw_patients(np.arange(50).astype(str), seed=0, draws=10)
    found = label_metrics(draws, true, scores)["average_precision"].value
    each = [average_precision_score(true[:, n], scores[:, n]) for n in range(3)]
    assert found == pytest.approx(np.mean(each))


def test_the_command_evaluates_several_labels(images, tiny_model, tmp_path, capsys):
    table = write_csv(tmp_path / "labels.csv", rows(label=label_text))
    out = tmp_path / "evaluation.json"
    command = ["evaluate", "--model", tiny_model, "--data", images, "--labels", table, "--out", out]
    assert main([str(word) for word in command]) == 0
    result = json.loads(out.read_text())
    assert result["targets"]["kind"] == "several"
    assert list(result["verdicts"]) == ["knn", "linear"]
    assert result["verdicts"]["linear"]["metric"] == "auroc"
    said = capsys.readouterr().out
    assert "2 labels, split made by patient" in said
    assert "average precision" in said
    assert "In AUROC the model" in said


def test_numbers_are_evaluated_by_how_much_of_them_is_told(images, tiny_model, tmp_path):
    rng = np.random.default_rng(0)
    age = [f"{40 * (n % 2) + rng.normal(40, 3):.1f}" for n in range(COUNT)]
    table = write_csv(tmp_path / "labels.csv", rows(age=lambda n: age[n]))
    result = evaluate(tiny_model, [images], table, label_column="age")
    pixels = result["results"]["pixels"]["linear"]["all"]
    assert pixels["r2"]["value"] > 0.8  # age is told by brightness
    assert pixels["mae"]["value"] < 8
    print_table(result, Console(quiet=True))
    with pytest.raises(UserError, match="few-shot needs one class an image"):
        evaluate(tiny_model, [images], table, label_column="age", tasks=["few-shot"])


def test_a_class_with_one_patient_is_left_out_and_said(images, tmp_path):
    def label(number):
        return "rare" if number < 2 else ("ill" if number % 2 else "well")

    labelled = labelled_of(images, write_csv(tmp_path / "labels.csv", rows(label=label)))
    assert labelled.classes == ["ill", "well"]
    assert labelled.left_out["images of a class with one patient"] == 2
    assert any("'rare' (2)" in warning for warning in labelled.warnings)


@pytest.mark.parametrize("column", ["group", "slide"])
def test_groups_and_slides_stay_on_one_side(images, tmp_path, column):
    table = [
        {"path": row["path"], "label": "ill" if n % 2 else "well", column: f"g{n // 6}"}
        for n, row in enumerate(rows())
    ]
    labelled = labelled_of(images, write_csv(tmp_path / "labels.csv", table))
    assert labelled.split_by == "patient"
    train = set(labelled.patients[labelled.is_train])
    assert not train & set(labelled.patients[labelled.is_test])
    assert len(set(labelled.patients)) == 10


def test_labels_in_a_parquet_table_are_read(images, tmp_path):
    table = rows(label=lambda n: n % 2)
    parquet.write_table(pa.Table.from_pylist(table), tmp_path / "labels.parquet")
    labelled = labelled_of(images, tmp_path / "labels.parquet")
    assert labelled.classes == ["0", "1"]
    assert labelled.patients_known
    with pytest.raises(UserError, match=r"no column 'lable'; did you mean 'label'"):
        labelled_of(images, tmp_path / "labels.parquet", "lable")


def test_values_that_are_no_labels_are_named_with_their_row(images, tmp_path):
    table = rows(bright=lambda n: "maybe" if n == 3 else "1", third=lambda n: "0")
    with pytest.raises(UserError, match=r"row 5: the column 'bright' holds 'maybe'"):
        labelled_of(images, write_csv(tmp_path / "labels.csv", table), "bright,third")
    with pytest.raises(UserError, match="no column 'fourth'"):
        labelled_of(images, tmp_path / "labels.csv", "bright,fourth")


def test_labels_that_all_or_none_have_leave_nothing_to_tell(images, tmp_path):
    table = write_csv(tmp_path / "labels.csv", rows(label=lambda n: "a|b"))
    labelled = labelled_of(images, table)
    with pytest.raises(UserError, match="no label is there and not there"):
        OtherTargets(labelled, labelled.targets, 0, [5])
