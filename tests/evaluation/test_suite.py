"""The whole evaluation: what it reports, and what it never writes down."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dino_x.cli import main
from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.errors import UserError
from dino_x.evaluation import contenders
from dino_x.evaluation.baselines import random_weights
from dino_x.evaluation.classify import Classification
from dino_x.evaluation.knn import balanced_accuracy, knn_probabilities, macro_auroc
from dino_x.evaluation.suite import evaluate
from dino_x.evaluation.table import print_table
from dino_x.evaluation.tasks import choose_tasks
from dino_x.files import write_json

from .conftest import MEAN, SIZE, STD, patient_rows, save_tiny, write_csv, write_image
from .test_embed import embed_with


def given(patients=10):
    return [
        row | {"split": "test" if int(row["patient"].removeprefix("Doe")) >= 6 else "train"}
        for row in patient_rows(patients)
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    save_tiny(folder, seed=4)
    return folder


@pytest.fixture(scope="module")
def masks(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    for row in patient_rows():
        brightest = np.asarray(Image.open(images / row["path"])) > 128
        Image.fromarray(brightest.astype(np.uint8)).save(folder / row["path"])
    return folder


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def result(tiny_model, images, masks, other, told, tmp_path_factory):
    """All tasks, against another model."""
    labels = write_csv(tmp_path_factory.mktemp("labels") / "labels.csv", given())
    return evaluate(
        tiny_model, [images], labels, masks=masks, against=[str(other)], ks=(5, 50), device="cpu",
        progress=lambda *done: told.append(done),
    )  # fmt: skip


def printed(result, width=100):
    stream = io.StringIO()
    print_table(result, Console(file=stream, width=width))
    return stream.getvalue()


def test_the_models_metrics_are_those_of_its_features(result, tiny_model, images):
    rows = given()
    features = embed_with(tiny_model, build_index([images], verify="headers").rows)
    classes = np.array([row["label"] == "well" for row in rows]).astype(int)
    test = np.array([row["split"] == "test" for row in rows])
    probabilities = knn_probabilities(features[~test], classes[~test], features[test], 2, k=5)
    metrics = result["results"]["model"]["knn"]["5"]
    accuracy = balanced_accuracy(classes[test], probabilities)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(accuracy)
    assert metrics["auroc"]["value"] == pytest.approx(macro_auroc(classes[test], probabilities))


def test_every_name_has_every_task_setting_and_metric(result, other):
    names = ["model", "random", "pixels", str(other)]
    assert list(result["results"]) == names
    classes = {"balanced_accuracy", "auroc"}
    expected = {
        "knn": {"5": classes, "12": classes},  # of 12 references
        "linear": {"all": classes},
        "few_shot": {"1": classes},  # 3 patients a class in train
        "segmentation": {"mean": {"dice", "iou"}, "foreground": {"dice", "iou"}},
    }
    for name in names:
        tasks = result["results"][name]
        shape = {
            task: {setting: set(metrics) for setting, metrics in settings.items()}
            for task, settings in tasks.items()
        }
        assert shape == expected
        for settings in tasks.values():
            for metrics in settings.values():
                for figure in metrics.values():
                    assert list(figure) == ["value", "low", "high"]
                    assert 0 <= figure["low"] <= figure["high"] <= 1
    assert list(result["verdicts"]) == list(expected) == result["settings"]["tasks"]
    settings = {task: found["setting"] for task, found in result["verdicts"].items()}
    assert settings == {"knn": "12", "linear": "all", "few_shot": "1", "segmentation": "mean"}


def test_differences_are_between_the_metrics_that_are_shown(result):
    for task, found in result["verdicts"].items():
        for name, difference in found["differences"].items():
            own, its = (
                result["results"][who][task][found["setting"]][found["metric"]]["value"]
                for who in ("model", name)
            )
            assert difference["value"] == pytest.approx(own - its)


def test_a_tested_image_is_never_its_own_neighbour(images, tmp_path):
    refs = build_index([images], verify="headers").rows
    labelled = load_labels(write_csv(tmp_path / "labels.csv", given()), refs, [images])
    patients = np.array([int(patient.removeprefix("Doe")) for patient in labelled.patients])
    angles = 0.1 * patients[:, None]  # but for itself, nearest to its neighbours
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    metrics = Classification(labelled, seed=0, ks=[1]).score("knn", "angles", features)
    assert metrics["1"]["balanced_accuracy"].value == 0.5  # all nearest to patient 5, who is ill


def test_no_task_is_taught_by_val_but_the_linear_probe(images, tmp_path):
    rows = given()
    for row in rows:
        row["split"] = "val" if row["patient"] in ("Doe4", "Doe5") else row["split"]
    refs = build_index([images], verify="headers").rows
    table = write_csv(tmp_path / "labels.csv", rows)
    labelled = load_labels(table, refs, [images], with_val=True)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 4)).astype(np.float32)
    other = features.copy()
    other[labelled.is_val] = 50 * rng.normal(size=(4, 4))
    for task, same in (("knn", True), ("few_shot", True), ("linear", False)):
        one, two = (
            next(iter(Classification(labelled, 0, [3]).score(task, "pixels", x).values()))
            for x in (features, other)
        )
        assert (one["auroc"].value == two["auroc"].value) is same


def test_pixels_are_prepared_by_the_references_only(images, tmp_path):
    refs = build_index([images], verify="headers").rows
    labelled = load_labels(write_csv(tmp_path / "labels.csv", given()), refs, [images])
    features = np.random.default_rng(0).normal(size=(20, 300)).astype(np.float32)
    centered = features - features[labelled.is_train].mean(axis=0)
    scorer = Classification(labelled, 0, [3])
    pixels = scorer.score("knn", "pixels", features)["3"]["auroc"]
    assert scorer.pixel_form["knn"] == "pixels"
    np.testing.assert_array_equal(
        pixels.draws_R, scorer.score("knn", "model", centered)["3"]["auroc"].draws_R
    )


def test_bright_and_dark_images_are_told_apart(result):
    assert result["results"]["pixels"]["knn"]["5"]["auroc"]["value"] > 0.9


def test_counts_settings_and_patients_are_reported(result):
    assert result["counts"] == {"train": {"ill": 6, "well": 6}, "test": {"ill": 4, "well": 4}}
    assert result["patients"] == {"train": 6, "test": 4}
    assert result["masks"] == {
        "images": {"train": 12, "test": 8}, "patients": {"train": 6, "test": 4},
        "classes": ["foreground"], "split_by": "given", "tested_split": "test",
    }  # fmt: skip
    settings = result["settings"]
    assert (settings["image_size"], settings["mean"], settings["std"]) == (SIZE, [MEAN], [STD])
    assert settings["split_by"] == "given"
    assert settings["segmentation"]["image_sizes"]["model"] == 224
    assert set(settings["linear"]["chosen_c"]) == set(result["results"])


def test_what_little_data_cannot_tell_is_said(result):
    assert [warning.split(":")[0] for warning in result["warnings"]] == [
        "few tested patients of a class ('ill' 2, 'well' 2)",
        "few-shot with 5 and 10 and 50 a class is left out",
        "which images the model, other0 were trained on is not known",
    ]


def test_progress_grows_to_the_end(told, result):
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]
    assert len({total for _, total in told}) == 1


def test_neither_patients_nor_files_are_written_down(result, images, masks, tmp_path):
    write_json(tmp_path / "evaluation.json", result)
    text = (tmp_path / "evaluation.json").read_text()
    assert json.loads(text) == result
    for secret in ("Doe", ".png", str(images), str(masks)):
        assert secret not in text
        assert secret not in printed(result)
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_the_tables_say_what_they_mean_within_100_columns(result):
    text = printed(result)
    assert max(len(line) for line in text.splitlines()) <= 100
    whole = " ".join(text.split())
    for found in result["verdicts"].values():
        assert found["sentence"] in whole
    assert "12 images of 6 patients" in text
    accuracy = result["results"]["pixels"]["linear"]["all"]["balanced_accuracy"]
    assert f"{accuracy['value']:.3f} ({accuracy['low']:.2f}-{accuracy['high']:.2f})" in text
    assert "95% intervals from 1,000 draws of the tested patients" in whole


def test_several_classes_of_masks_have_rows_of_their_own(result):
    several = json.loads(json.dumps(result))
    for tasks in several["results"].values():
        tasks["segmentation"]["2"] = tasks["segmentation"]["foreground"]
    text = printed(several)
    assert "2: raw pixels" in text
    assert "mean over 2 classes" in text


def test_the_random_baseline_is_that_of_the_seed(tiny_model, images, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        contenders,
        "random_weights",
        lambda *given: drawn.append(given[1]) or random_weights(*given),
    )
    labels = write_csv(tmp_path / "labels.csv", given())
    result = evaluate(tiny_model, [images], labels, tasks=["knn"], device="cpu", seed=11)
    assert drawn == [11]
    assert result["settings"]["seed"] == 11
    assert result["settings"]["tasks"] == ["knn"]


def test_images_that_cannot_be_decoded_are_left_out(tiny_model, tmp_path):
    for seed, row in enumerate(patient_rows()):
        write_image(tmp_path / row["path"], seed, bright=row["label"] == "ill")
    broken = tmp_path / "p07_1.png"
    broken.write_bytes(broken.read_bytes()[:300])  # the header is whole, the pixels are not
    labels = write_csv(tmp_path / "labels.csv", given())
    result = evaluate(tiny_model, [tmp_path], labels, tasks=["knn"], device="cpu")
    assert result["counts"]["test"] == {"ill": 3, "well": 4}
    assert result["left_out"] == {"images that cannot be decoded": 1}
    assert "Left out: 1 images that cannot be decoded." in printed(result)


def test_without_patients_the_warning_is_shown(tiny_model, tmp_path):
    for number in range(12):
        write_image(tmp_path / "ab"[number % 2] / f"{number}.png", number, bright=number % 2 == 1)
    result = evaluate(tiny_model, [tmp_path], "folder", tasks=["knn"], device="cpu")
    assert result["patients"] is None
    assert result["settings"]["split_by"] == "image"
    assert "flatters every number" in " ".join(printed(result).split())


def test_the_command_takes_masks_without_labels(tiny_model, images, masks, tmp_path, capsys):
    rows = [
        row | {"mask": os.path.relpath(masks / row["path"], tmp_path)} for row in given(patients=8)
    ]
    table = write_csv(tmp_path / "table.csv", rows)
    command = ["evaluate", "--model", str(tiny_model), "--data", str(images), "--device", "cpu"]
    out = tmp_path / "out.json"
    assert main([*command, "--masks", str(table), "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["settings"]["tasks"] == ["segmentation"]
    assert (result["counts"], result["patients"]) == ({}, None)
    assert result["left_out"] == {"images without a mask": 4}
    assert "Segmentation by a linear probe" in capsys.readouterr().out


def test_a_column_of_masks_in_the_labels_is_enough(tiny_model, images, masks, tmp_path):
    rows = [row | {"mask": str(masks / row["path"])} for row in given()]
    table = write_csv(tmp_path / "table.csv", rows)
    result = evaluate(tiny_model, [images], table, tasks=["segmentation"], device="cpu")
    assert list(result["results"]["model"]) == ["segmentation"]
    assert result["settings"]["masks"] == "table.csv"


@pytest.mark.parametrize(
    ("wanted", "labels", "masks", "expected"),
    [
        (None, True, False, ["knn", "linear", "few-shot"]),
        (None, False, True, ["segmentation"]),
        (["segmentation", "knn"], True, True, ["knn", "segmentation"]),
    ],
)
def test_tasks_are_all_that_is_possible_or_those_asked_for(wanted, labels, masks, expected):
    assert choose_tasks(wanted, labels, masks) == expected


@pytest.mark.parametrize(
    ("wanted", "labels", "masks", "message"),
    [
        (["lineal"], True, False, "no task 'lineal'; did you mean 'linear'"),
        (["segmentation"], True, False, "the task segmentation needs --masks"),
        (["few-shot"], False, True, "the task few-shot needs --labels"),
        (None, False, False, "nothing to evaluate on: give --labels, --masks or both"),
    ],
)
def test_tasks_that_are_not_possible_are_refused(wanted, labels, masks, message):
    with pytest.raises(UserError, match=message):
        choose_tasks(wanted, labels, masks)


def test_features_that_are_not_numbers_are_refused(images, tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["norm.weight"] *= float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="features of model are not finite"):
        evaluate(tmp_path, [images], write_csv(tmp_path / "labels.csv", given()), device="cpu")


@pytest.mark.parametrize("broken", [{"ks": [5, 0]}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(tiny_model, images, broken):
    with pytest.raises(UserError, match="less than 1"):
        evaluate(tiny_model, [images], "folder", **broken)


def test_features_that_are_none_are_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="features 'mean' is none of: cls, cls\\+mean"):
        evaluate(tmp_path / "absent", [tmp_path / "absent"], "folder", features="mean")
