"""The images in the package: few megabytes, no patient on both sides, nobody's name."""

import csv

import pydicom
import pytest

from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.demo import demo_folder, demo_labels


@pytest.fixture(scope="module")
def labelled():
    refs = build_index([demo_folder()], verify="headers").rows
    return load_labels(demo_labels(), refs, [demo_folder()], label_column="subtype")


def test_the_demo_takes_less_than_8_megabytes():
    assert sum(file.stat().st_size for file in demo_folder().rglob("*")) < 8e6


def test_every_film_is_labelled_and_split_by_patient(labelled):
    train = set(labelled.patients[~labelled.is_test])
    test = set(labelled.patients[labelled.is_test])
    assert (len(labelled.refs), labelled.is_test.sum()) == (2400, 700)
    assert (len(train), len(test), len(train & test)) == (1001, 424, 0)
    assert labelled.classes == ["bacteria", "normal", "virus"]
    assert labelled.left_out == {"images that the labels do not name": 2}  # the MR slices


def test_names_of_films_say_nothing(labelled):
    with open(demo_labels(), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"films/{i:04d}.jpg" for i in range(1, 2401)]
    assert all(row["patient"].isdigit() for row in rows)
    halves = [sum(row["label"] == "normal" for row in half) for half in (rows[:1200], rows[1200:])]
    assert abs(halves[0] - halves[1]) < 100  # not sorted by label


def test_the_dicom_slices_hold_no_identifiers():
    slices = list((demo_folder() / "mri").glob("*.dcm"))
    assert len(slices) == 2
    for file in slices:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        assert header.PatientName == header.PatientID == ""
        for element in header.iterall():
            assert not element.tag.is_private
            assert element.VR not in ("DA", "TM", "DT", "AS", "LT", "ST", "UT"), element.name


def test_licence_and_attribution_are_beside_the_images():
    assert "CC BY 4.0" in (demo_folder() / "LICENSE.md").read_text()
    attribution = (demo_folder() / "ATTRIBUTION.md").read_text()
    for needed in ("Kermany", "rscbjbr9sj", "10.1016/j.cell.2018.02.010", "PDDL", "Changes made"):
        assert needed in attribution
