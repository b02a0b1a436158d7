"""Another file of the same picture on both sides of a split is said, and its likes are not."""

import numpy as np
import pytest
from PIL import Image

from dino_x.evaluation.near_copies import near_copies, warn_of_near_copies
from dino_x.evaluation.suite import evaluate
from tests.evaluation.conftest import write_csv
from tests.tiny import draw_film


def square(film):
    small = film.resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).ravel() / 255


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(draw_film(rng, 120, 140)) for _ in range(12)]


def test_images_of_one_picture_are_counted_and_other_pictures_are_not(pictures):
    train = [square(film) for film in pictures[:8]]
    brighter = pictures[0].point(lambda value: min(255, value * 0.9 + 20))
    larger = pictures[1].resize((280, 240), Image.Resampling.BICUBIC)
    asked = [square(film) for film in (brighter, larger, *pictures[8:])]
    is_test = np.arange(14) >= 8
    assert near_copies(np.stack(train + asked), is_test) == 2
    assert near_copies(np.stack(train + asked[2:]), is_test[:12]) == 0
    assert warn_of_near_copies(np.stack(train + asked[2:]), is_test[:12]) == []


def test_blank_images_are_no_copies_of_each_other():
    blank = np.full((6, 1024), 0.5, dtype=np.float32)
    blank[:, 0] += 0.001
    assert near_copies(blank, np.arange(6) >= 3) == 0
    assert near_copies(blank, np.ones(6, dtype=bool)) == 0


def test_copies_of_another_compression_across_a_given_split_are_said(
    pictures, tiny_model, tmp_path
):
    rows = []
    for number, film in enumerate(pictures):
        film.save(tmp_path / f"{number}.png")
        film.save(tmp_path / f"{number}-again.jpg", quality=80)
        label = "ab"[number % 2]
        rows += [
            {"path": f"{number}.png", "label": label, "patient": f"{number}", "split": "train"},
            {"path": f"{number}-again.jpg", "label": label, "patient": f"x{number}",
             "split": "test"},
        ]  # fmt: skip
    table = write_csv(tmp_path / "labels.csv", rows)
    result = evaluate(tiny_model, [tmp_path], table, tasks=["knn"], device="cpu")
    told = [line for line in result["warnings"] if "nearly the same picture" in line]
    assert len(told) == 1
    assert told[0].startswith("12 of 12 tested images")
