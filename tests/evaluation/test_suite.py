"""The whole evaluation: what it reports, and what it never writes down."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from dino_x.data.index import build_index
from dino_x.errors import UserError
from dino_x.evaluation import suite
from dino_x.evaluation.baselines import random_weights
from dino_x.evaluation.knn import balanced_accuracy, knn_probabilities, macro_auroc
from dino_x.evaluation.labels import load_labels
from dino_x.evaluation.suite import evaluate, print_table, score, verdict, write_json

from .conftest import MEAN, SIZE, STD, patient_rows, save_tiny, write_csv, write_image
from .test_embed import embed_with


def given(patients=10):
    return [
        row | {"split": "test" if int(row["patient"].removeprefix("Doe")) >= 6 else "train"}
        for row in patient_rows(patients)
    ]


@pytest.fixture(scope="module")
def result(tiny_model, images, tmp_path_factory):
    labels = write_csv(tmp_path_factory.mktemp("labels") / "labels.csv", given())
    return evaluate(tiny_model, [images], labels, k=5, device="cpu")


def printed(result):
    stream = io.StringIO()
    print_table(result, Console(file=stream, width=100))
    return stream.getvalue()


def test_the_model_s_figures_are_those_of_its_features(result, tiny_model, images):
    rows = given()
    features = embed_with(tiny_model, build_index([images], verify="headers").rows)
    classes = np.array([row["label"] == "well" for row in rows]).astype(int)
    test = np.array([row["split"] == "test" for row in rows])
    probabilities = knn_probabilities(features[~test], classes[~test], features[test], 2, k=5)
    assert result["results"]["model"] == {
        "balanced_accuracy": pytest.approx(balanced_accuracy(classes[test], probabilities)),
        "auroc": pytest.approx(macro_auroc(classes[test], probabilities)),
        "k": 5,
    }


def test_a_tested_image_is_never_its_own_neighbour(images, tmp_path):
    refs = build_index([images], verify="headers").rows
    labelled = load_labels(write_csv(tmp_path / "labels.csv", given()), refs, [images])
    patients = np.array([int(patient.removeprefix("Doe")) for patient in labelled.patients])
    angles = 0.1 * patients[:, None]  # but for itself, nearest to its neighbours
    features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    figures = score(features, labelled, k=1, name="angles")
    assert figures["balanced_accuracy"] == 0.5  # all are nearest to patient 5, who is ill


def test_bright_and_dark_images_are_told_apart(result):
    assert result["results"]["pixels"]["auroc"] > 0.9


def test_counts_settings_and_patients_are_reported(result):
    assert result["counts"] == {"train": {"ill": 6, "well": 6}, "test": {"ill": 4, "well": 4}}
    assert result["patients"] == {"train": 6, "test": 4}
    assert set(result["results"]) == {"model", "random", "pixels"}
    settings = result["settings"]
    assert (settings["image_size"], settings["mean"], settings["std"]) == (SIZE, [MEAN], [STD])
    assert settings["split_by"] == "given"
    assert result["warnings"] == []


def test_neither_patients_nor_files_are_written_down(result, images, tmp_path):
    write_json(result, tmp_path / "evaluation.json")
    text = (tmp_path / "evaluation.json").read_text()
    assert json.loads(text) == result
    for secret in ("Doe", ".png", str(images)):
        assert secret not in text
        assert secret not in printed(result)
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]


def test_the_random_baseline_is_that_of_the_seed(tiny_model, images, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        suite, "random_weights", lambda *given: drawn.append(given[1]) or random_weights(*given)
    )
    labels = write_csv(tmp_path / "labels.csv", given())
    result = evaluate(tiny_model, [images], labels, k=5, device="cpu", seed=11)
    assert drawn == [11]
    assert result["settings"]["seed"] == 11


def test_k_is_capped_at_the_number_of_references(tiny_model, images, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", given())
    capped = evaluate(tiny_model, [images], labels, device="cpu")
    assert {figures["k"] for figures in capped["results"].values()} == {12}


def test_images_that_cannot_be_decoded_are_left_out(tiny_model, tmp_path):
    for seed, row in enumerate(patient_rows()):
        write_image(tmp_path / row["path"], seed, bright=row["label"] == "ill")
    broken = tmp_path / "p07_1.png"
    broken.write_bytes(broken.read_bytes()[:300])  # the header is whole, the pixels are not
    result = evaluate(
        tiny_model, [tmp_path], write_csv(tmp_path / "labels.csv", given()), device="cpu"
    )
    assert result["counts"]["test"] == {"ill": 3, "well": 4}
    assert result["left_out"] == {"images that cannot be decoded": 1}
    assert "Left out: 1 images that cannot be decoded." in printed(result)


def test_without_patients_the_warning_is_shown(tiny_model, tmp_path):
    for number in range(12):
        write_image(tmp_path / "ab"[number % 2] / f"{number}.png", number, bright=number % 2 == 1)
    result = evaluate(tiny_model, [tmp_path], "folder", device="cpu")
    assert result["patients"] is None
    assert result["settings"]["split_by"] == "image"
    assert "flatters every number" in " ".join(printed(result).split())


def test_the_table_is_short_and_says_what_it_means(result):
    text = printed(result)
    assert len(text.splitlines()) <= 12
    assert "12 images of 6 patients" in text
    assert verdict(result["results"]) in text


@pytest.mark.parametrize(
    ("model", "random", "pixels", "expected"),
    [
        (0.7, 0.6, 0.5, "the model beats random weights by 0.100 and raw pixels by 0.200"),
        (0.7, 0.6, 0.9,
         "the model beats random weights by 0.100, but is worse than raw pixels by 0.200"),
        (0.4, 0.6, 0.9, "the model is worse than random weights by 0.200 and raw pixels by 0.500"),
        (0.6, 0.6, 0.5, "the model beats raw pixels by 0.100, but equals random weights"),
    ],
)  # fmt: skip
def test_the_verdict_says_plainly_when_the_model_is_worse(model, random, pixels, expected):
    accuracies = {"model": model, "random": random, "pixels": pixels}
    results = {name: {"balanced_accuracy": value} for name, value in accuracies.items()}
    assert verdict(results) == expected


def test_features_that_are_not_numbers_are_refused(images, tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["norm.weight"] *= float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="features of model are not finite"):
        evaluate(tmp_path, [images], write_csv(tmp_path / "labels.csv", given()), device="cpu")


@pytest.mark.parametrize("broken", [{"k": 0}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(tiny_model, images, broken):
    with pytest.raises(UserError, match="less than 1"):
        evaluate(tiny_model, [images], "folder", **broken)
