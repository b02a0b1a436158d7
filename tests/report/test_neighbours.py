"""Neighbours with their labels, and what groups images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dino_x.data.image import ImageRef
from dino_x.report.looking import EmbeddedImages
from dino_x.report.neighbours import groups_of, known_of, neighbour_gallery
from dino_x.report.run_data import read_run
from tests.report.runs import make_run


def looked(patients=(None,) * 8):
    """Eight images on a circle: each has the next ones as neighbours."""
    angles = np.linspace(0, 1, 8)
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    refs = [
        ImageRef(path=Path(f"secret{n}.png"), height=4, width=4, patient=patient, format="PNG")
        for n, patient in enumerate(patients)
    ]
    return EmbeddedImages([np.full((1, 4, 4), 9, np.uint8)] * 8, [1.0] * 8, features, refs)


def test_neighbours_say_whether_their_label_is_right():
    labels = ["ill", "ill", "well", None, "ill", "well", "well", "ill"]
    gallery = neighbour_gallery(looked(), True, labels)
    first = gallery.strips[0].pictures
    assert (first[0].label, first[0].mark) == ("ill", "")
    assert [picture.mark for picture in first[1:]] == ["right", "wrong", "", "right", "wrong"]
    assert first[1].label.endswith("✓ ill")
    assert first[2].label.endswith("✕ well")
    assert first[2].alt.endswith("label well, other than that of the image")
    marks = [picture.mark for strip in gallery.strips for picture in strip.pictures]
    right, judged = marks.count("right"), len(marks) - marks.count("")
    assert f"{right} of these {judged} neighbours have the label of their image" in gallery.caption
    assert "secret" not in str([strip.pictures for strip in gallery.strips])


def test_without_labels_nothing_is_judged():
    gallery = neighbour_gallery(looked(("p",) * 2 + (None,) * 6), True, [None] * 8)
    assert "have the label" not in gallery.caption
    assert gallery.strips[0].pictures[1].label.endswith("same patient")


def test_patients_are_numbered_and_never_named():
    groups = groups_of(looked(("x", "x", "x", "y", "y", "y", "y", "x")).refs, [None] * 8)
    assert set(groups["patient"]) == {"patient 1", "patient 2"}
    alone = groups_of(looked(tuple("abcdefgh")).refs, [None] * 8)
    assert set(alone["patient"]) == {None}  # one image each tells nothing


@pytest.mark.parametrize(("text", "found"), [("ill", {"ill"}), ("", {None})])
def test_labels_and_patients_are_those_of_the_runs_own_labels(films, tmp_path, text, found):
    files = sorted(films.rglob("*.png"))
    table = tmp_path / "labels.csv"
    rows = [f"{file},{text},Doe{n // 2}" for n, file in enumerate(files)]
    table.write_text("\n".join(["path,label,patient", *rows]))
    run = make_run(tmp_path / "run", done=1, data__paths=[str(films)], data__labels=str(table))
    refs = [replace(looked().refs[0], path=file) for file in files]
    known = known_of(read_run(run), refs)
    assert set(known.labels) == found
    if text:
        assert known.refs[0].patient == known.refs[1].patient != known.refs[2].patient
        groups = groups_of(known.refs, known.labels)
        assert set(groups["patient"]) == {f"patient {n}" for n in range(1, len(files) // 2 + 1)}
    table.unlink()
    assert set(known_of(read_run(run), refs).labels) == {None}
