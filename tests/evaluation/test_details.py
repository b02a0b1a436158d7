"""Each class by itself, with answers that can be worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import auc, roc_auc_score

from dino_x.evaluation.bootstrap import draw_patients
from dino_x.evaluation.detail_tables import class_table, confusion_table
from dino_x.evaluation.details import (
    ROC_POINTS,
    details_of_classes,
    roc,
    share,
)

TRUE = np.array([0, 0, 0, 0, 1, 1, 2, 2])
ANSWERS = np.array([0, 0, 0, 1, 1, 0, 1, 0])  # the last class is never answered
NAMES = ["normal", "bacteria", "virus"]


def details():
    probabilities = 0.1 + 0.7 * np.eye(3)[ANSWERS]
    draws = draw_patients(np.array([f"p{n // 2}" for n in range(8)]), seed=0, draws=50)
    return details_of_classes(draws, TRUE, probabilities, NAMES)


def test_the_confusion_matrix_counts_images_by_class_and_answer():
    assert details()["confusion"] == [[3, 1, 0], [1, 1, 0], [1, 1, 0]]


def test_each_class_has_its_figures():
    classes = details()["classes"]
    assert [classes[name]["images"] for name in NAMES] == [4, 2, 2]
    assert [classes[name]["recall"]["value"] for name in NAMES] == [0.75, 0.5, 0.0]
    assert classes["normal"]["precision"]["value"] == pytest.approx(3 / 5)
    assert classes["virus"]["precision"] is None
    assert classes["bacteria"]["specificity"]["value"] == pytest.approx(4 / 6)
    assert classes["normal"]["auroc"]["value"] == pytest.approx(10 / 16)  # 6 pairs won, 8 ties
    recall = classes["normal"]["recall"]
    assert 0 <= recall["low"] <= recall["value"] <= recall["high"] <= 1


def test_a_share_has_the_interval_of_its_patients():
    """A patient with 9 images, 8 of them right, and one with 1, wrong: a draw has 8/9, 0.8 or 0."""
    draws = draw_patients(np.array(["a"] * 9 + ["b"]), seed=0, draws=400)
    found = share(draws, np.array([True] * 8 + [False] * 2), np.ones(10, dtype=bool))
    assert found == {"value": 0.8, "low": 0.0, "high": pytest.approx(8 / 9)}
    assert share(draws, np.zeros(10, dtype=bool), np.zeros(10, dtype=bool)) is None


def test_the_curve_is_short_begins_and_ends_in_the_corners_and_keeps_its_area():
    rng = np.random.default_rng(0)
    positive = rng.random(5000) < 0.1
    score = rng.normal(size=5000) + positive
    curve = roc(positive, score)
    across, up = curve["false_positive_rate"], curve["true_positive_rate"]
    assert len(across) <= ROC_POINTS
    assert (across[0], up[0], across[-1], up[-1]) == (0, 0, 1, 1)
    assert auc(across, up) == pytest.approx(roc_auc_score(positive, score), abs=1e-3)


def test_more_than_50_classes_have_no_matrix():
    draws = draw_patients(np.arange(102).astype(str), seed=0, draws=5)
    true = np.arange(102) % 51
    found = details_of_classes(draws, true, np.eye(51)[true], [str(n) for n in range(51)])
    assert found["confusion"] is None
    assert len(found["classes"]) == 51


def test_tables_for_people():
    detail = details()
    table = class_table(detail)
    assert [column.header.plain for column in table.columns[1:]] == [
        "images", "recall", "precision", "AUROC",
    ]  # fmt: skip
    assert list(table.columns[3].cells)[2] == "never answered"
    matrix = confusion_table(NAMES, detail["confusion"])
    assert matrix.columns[1].header.plain == "taken for normal"
    assert list(matrix.columns[1].cells) == ["3", "1", "1"]
