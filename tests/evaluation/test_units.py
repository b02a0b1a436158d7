"""Scores of volumes, slides and patients, with answers that can be worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dino_x.cli import main
from dino_x.data.index.index import build_index
from dino_x.data.index.label_kinds import Targets
from dino_x.data.index.labels import load_labels
from dino_x.evaluation.classify import Classification
from dino_x.evaluation.other_targets import OtherTargets
from dino_x.evaluation.units import Units, score_units, units_of

from .conftest import patient_rows, write_csv


def labelled_of(images, tmp_path, **columns):
    """The 20 images of 10 patients, of whom 6 to 9 are tested, with further columns."""
    rows = [
        row
        | {"split": "test" if int(row["patient"].removeprefix("Doe")) >= 6 else "train"}
        | {name: of(number) for name, of in columns.items()}
        for number, row in enumerate(patient_rows())
    ]
    refs = build_index([images], verify="headers").rows
    return load_labels(write_csv(tmp_path / "labels.csv", rows), refs, [images])


def test_a_unit_has_the_mean_of_the_scores_of_its_images(images, tmp_path):
    """Patients well, ill, well, ill; one image of each is taken for the other class, weakly."""
    scorer = Classification(labelled_of(images, tmp_path), 0, [3])
    (units,) = units_of(scorer.labelled)
    assert (units.name, units.count) == ("patient", 4)
    well = [0.9, 0.4, 0.2, 0.6, 0.7, 0.4, 0.1, 0.6]
    scores = np.array([[1 - share, share] for share in well])
    assert scorer.labelled.classes == ["ill", "well"]
    by_image = scorer._metrics(scores)
    assert by_image["balanced_accuracy"].value == 0.5
    by_patient = scorer.of_units(units, scores)  # 0.65, 0.4, 0.55, 0.35
    assert (by_patient.count, by_patient.mixed) == (4, 0)
    assert by_patient.metrics["balanced_accuracy"].value == 1.0
    assert by_patient.metrics["auroc"].value == 1.0
    assert by_image["auroc"].value == pytest.approx(12 / 16)  # 2 pairs lost, 4 are ties


def test_units_of_images_of_different_classes_are_left_out_and_counted(images, tmp_path):
    """Slides of 4 images: patients 6 and 7 share one, which is well and ill."""
    labelled = labelled_of(images, tmp_path, slide=lambda n: f"s{n // 4}" if n < 16 else f"t{n}")
    scorer = Classification(labelled, 0, [3])
    units = next(units for units in units_of(labelled) if units.name == "slide")
    scores = np.array([[0.2, 0.8], [0.2, 0.8], [0.9, 0.1], [0.9, 0.1]] * 2)
    found = scorer.of_units(units, scores)
    assert (found.count, found.mixed) == (4, 1)
    assert found.metrics["balanced_accuracy"].value == 1.0


def test_a_class_without_units_is_named(images, tmp_path):
    labelled = labelled_of(images, tmp_path, volume=lambda n: f"v{n % 2}")
    scorer = Classification(labelled, 0, [3])
    scorer.scores = {"linear": dict.fromkeys(("model", "pixels"), np.full((8, 2), 0.5))}
    found, missing = score_units(scorer, units_of(labelled), {"linear": "all"}, "auroc")
    assert list(found) == ["patient"]
    assert missing == ["no scores by volume: no volume has tested images of 'ill', 'well' alone"]


def test_several_labels_of_a_unit_are_those_of_any_image_and_numbers_their_mean(images, tmp_path):
    labelled = labelled_of(images, tmp_path)
    values = np.tile([[0.0], [1.0]], (10, 1))
    values[-4:] = 0  # patients 8 and 9 have the label on no image, 6 and 7 on one
    several = replace(labelled, targets=Targets("several", ("mass",), values))
    scorer = OtherTargets(several, several.targets, 0, [3])
    (units,) = units_of(several)
    scores = np.array([0.1, 0.9, 0.2, 0.7, 0.3, 0.4, 0.5, 0.45])[:, None]
    metrics = scorer.of_units(units, scores).metrics  # 0.5, 0.45, 0.35, 0.475: 3 of 4 pairs
    assert metrics["auroc"].value == pytest.approx(0.75)

    ages = np.arange(20.0)[:, None]
    numbers = replace(labelled, targets=Targets("numbers", ("age",), ages))
    scorer = OtherTargets(numbers, numbers.targets, 0, [3])
    found = scorer.of_units(units, ages[-8:] + np.tile([[3.0], [-1.0]], (4, 1)))
    assert found.metrics["mae"].value == pytest.approx(1.0)  # of images it is 2


def test_draws_of_units_are_those_of_their_patients(images, tmp_path):
    """Four patients, one of them always wrong: the interval is that of patients, not of images."""
    scorer = Classification(labelled_of(images, tmp_path), 0, [3])
    (units,) = units_of(scorer.labelled)
    drawn = units.draws(scorer.draws, np.ones(4, dtype=bool))
    np.testing.assert_array_equal(drawn.counts_RP, scorer.draws.counts_RP)
    assert drawn.patient_Q.tolist() == [0, 1, 2, 3]


def test_kinds_that_say_the_same_are_given_once(images, tmp_path):
    one_each = labelled_of(images, tmp_path, volume=lambda n: f"v{n // 2}")
    assert [units.name for units in units_of(one_each)] == ["patient"]
    smaller = labelled_of(images, tmp_path, slide=lambda n: f"s{n // 4}", volume=lambda n: f"{n}")
    assert [units.name for units in units_of(smaller)] == ["slide", "patient"]
    assert Units("volume", np.array([0, 1, 0])).extremes(np.array([3, 1, 5]))[0].tolist() == [3, 1]


def test_a_file_of_several_images_is_a_volume(tiny_model, tmp_path, capsys):
    """NIfTI volumes of 3 slices: the command scores slices and volumes, and names neither."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(8):
        bright = 100 * (number % 2)
        voxels = rng.normal(100 + bright, 30, (40, 40, 3)).astype(np.float32)
        name = f"secret{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / name)
        side = "train" if number < 4 else "test"
        rows.append({"path": name, "label": "ab"[number % 2], "split": side})
    table, out = write_csv(tmp_path / "labels.csv", rows), tmp_path / "result.json"
    command = ["evaluate", "--model", tiny_model, "--data", tmp_path, "--labels", table,
               "--out", out, "--tasks", "knn", "linear"]  # fmt: skip
    assert main([str(word) for word in command]) == 0
    result = json.loads(out.read_text())
    assert list(result["units"]) == ["volume"]
    volume = result["units"]["volume"]
    assert (volume["count"], volume["mixed"]) == (4, 0)
    assert list(volume["results"]) == list(result["results"])
    assert list(volume["verdicts"]) == ["knn", "linear"]
    said = capsys.readouterr().out
    assert "The model by unit: mean of the scores of its images" in said
    rows_said = [line.split()[:2] for line in said.splitlines()]
    assert [row for row in rows_said if row[:1] in (["image"], ["volume"])] == [
        ["image", "12"], ["volume", "4"],
    ]  # fmt: skip
    assert "secret" not in out.read_text()
