"""Labels and splits: no patient on both sides, and mistakes named in one line."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dino_x.data.image import ImageRef
from dino_x.data.index.index import build_index
from dino_x.data.index.labels import keys_of_patients, load_labels
from dino_x.data.index.splits import Item, make_split
from dino_x.data.loading.order import order_of
from dino_x.data.loading.sampler import sample_indices
from dino_x.errors import UserError
from tests.evaluation.conftest import patient_rows, write_csv, write_image


def load(folder, labels, **more):
    return load_labels(labels, build_index([folder], verify="headers").rows, [folder], **more)


def names(labelled, rows=slice(None)):
    return sorted(ref.path.name for ref in np.array(labelled.refs, dtype=object)[rows])


def with_split(rows, side_of):
    return [row | {"split": side_of(row)} for row in rows]


def by_number(row):
    return "test" if int(row["patient"].removeprefix("Doe")) >= 6 else "train"


def test_a_split_made_by_patient_tears_no_patient_apart(images, tmp_path):
    labelled = load(images, write_csv(tmp_path / "labels.csv", patient_rows()))
    train = set(labelled.patients[~labelled.is_test])
    test = set(labelled.patients[labelled.is_test])
    assert labelled.split_by == "patient"
    assert train
    assert test
    assert not train & test
    assert len(labelled.refs) == 20
    assert not labelled.warnings


@pytest.mark.parametrize("images_each", [1, 3, 7])
def test_patients_with_many_images_and_several_labels_stay_whole(images_each):
    rng = np.random.default_rng(images_each)
    items = [
        Item(None, f"{p}/{i}", label=str(rng.integers(3)), patient=str(p))
        for p in range(50)
        for i in range(images_each)
    ]
    sides = {}
    for item, side in zip(items, make_split(items), strict=True):
        sides.setdefault(item.patient, set()).add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert 30 <= sum(found == {"train"} for found in sides.values()) <= 40  # about 70% of 50


def test_a_made_split_depends_on_neither_order_nor_place(images, tmp_path):
    first = load(images, write_csv(tmp_path / "labels.csv", patient_rows()))
    elsewhere = tmp_path / "elsewhere"
    for seed, row in enumerate(patient_rows()):
        write_image(elsewhere / row["path"], seed)
    again = load(elsewhere, write_csv(elsewhere / "labels.csv", patient_rows()[::-1]))
    assert names(first, first.is_test) == names(again, again.is_test)


def test_two_patients_of_a_class_are_enough_for_both_sides(images, tmp_path):
    rows = patient_rows(patients=4)
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows))
    for side in (labelled.is_test, ~labelled.is_test):
        assert set(labelled.labels[side]) == {"ill", "well"}


def test_a_given_split_is_kept_and_val_is_left_out(images, tmp_path):
    def side_of(row):
        return "val" if row["patient"] in ("Doe4", "Doe5") else by_number(row)

    labelled = load(images, write_csv(tmp_path / "labels.csv", with_split(patient_rows(), side_of)))
    assert labelled.split_by == "given"
    assert labelled.tested == "test"
    assert set(labelled.patients[labelled.is_test]) == {"Doe6", "Doe7", "Doe8", "Doe9"}
    assert set(labelled.patients[~labelled.is_test]) == {"Doe0", "Doe1", "Doe2", "Doe3"}
    assert labelled.left_out == {"images of a split not used": 4}


def test_val_beside_a_test_split_is_there_for_who_asks(images, tmp_path):
    def side_of(row):
        return "val" if row["patient"] in ("Doe4", "Doe5") else by_number(row)

    table = write_csv(tmp_path / "labels.csv", with_split(patient_rows(), side_of))
    labelled = load(images, table, with_val=True)
    assert set(labelled.patients[labelled.is_val]) == {"Doe4", "Doe5"}
    assert set(labelled.patients[labelled.is_train]) == {"Doe0", "Doe1", "Doe2", "Doe3"}
    assert not (labelled.is_val & labelled.is_test).any()
    assert labelled.left_out == {}
    assert not load(images, table).is_val.any()
    kept = labelled.keep(np.arange(len(labelled.refs)) != 9, "broken")
    assert (kept.is_val.sum(), kept.is_train.sum(), kept.is_test.sum()) == (3, 8, 8)


def test_val_is_tested_where_there_is_no_test(images, tmp_path):
    rows = with_split(patient_rows(), lambda row: by_number(row).replace("test", "val"))
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows))
    assert labelled.tested == "val"
    assert labelled.is_test.sum() == 8
    assert not load(images, tmp_path / "labels.csv", with_val=True).is_val.any()
    for row in rows[12:]:
        row["label"] = "well"
    with pytest.raises(UserError, match=r"no image of 'ill' in val: .* one in val"):
        load(images, write_csv(tmp_path / "labels.csv", rows))


def test_a_patient_in_two_splits_is_refused_without_being_named(images, tmp_path):
    rows = with_split(patient_rows(), by_number)
    rows[1]["split"] = "test"  # Doe0 and, below, Doe3
    rows[7]["split"] = "val"
    with pytest.raises(
        UserError, match=r"^2 of 10 patients .* row 2, train.* row 3, test"
    ) as error:
        load(images, write_csv(tmp_path / "labels.csv", rows))
    assert "Doe" not in str(error.value)


def test_folders_give_the_classes_and_a_warning(tmp_path):
    for number in range(12):
        write_image(tmp_path / ("ab"[number % 2]) / "deep" / f"{number}.png", number)
    write_image(tmp_path / "loose.png", 99)
    labelled = load(tmp_path, "folder")
    assert labelled.classes == ["a", "b"]
    assert Counter(labelled.labels.tolist()) == {"a": 6, "b": 6}
    assert labelled.split_by == "image"
    assert not labelled.patients_known
    assert labelled.left_out == {"images that the labels do not name": 1}
    assert "patients are not known" in labelled.warnings[0]


def test_unknown_patients_are_warned_about_with_a_given_split_too(images, tmp_path):
    rows = with_split(patient_rows(), by_number)
    for row in rows[:3]:
        row["patient"] = ""
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows))
    assert "patients of 3 of 20 images are not known" in labelled.warnings[0]
    assert not labelled.patients_known


def test_empty_labels_are_left_out_and_counted(images, tmp_path):
    rows = patient_rows()
    rows[0]["label"] = rows[5]["label"] = " "
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows))
    assert labelled.left_out == {"images with an empty label": 2}
    assert rows[0]["path"] not in names(labelled)


def test_another_label_column_can_be_chosen(images, tmp_path):
    rows = [row | {"side": "LR"[i % 2]} for i, row in enumerate(patient_rows())]
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows), label_column="side")
    assert labelled.classes == ["L", "R"]


def test_paths_are_relative_to_the_csv_file_or_to_the_data(images, tmp_path):
    (tmp_path / "set").symlink_to(images)
    rows = [row | {"path": f"set/{row['path']}"} for row in patient_rows()]
    above = load(tmp_path / "set", write_csv(tmp_path / "above.csv", rows))
    away = load(images, write_csv(tmp_path / "away.csv", patient_rows()))
    assert names(above) == names(away) == sorted(row["path"] for row in patient_rows())


def test_some_paths_without_an_image_are_warned_about(images, tmp_path):
    rows = [*patient_rows(), {"path": "gone.png", "label": "ill", "patient": "x"}]
    labelled = load(images, write_csv(tmp_path / "labels.csv", rows))
    assert labelled.left_out == {"rows that match no image": 1}
    assert "1 of 21 labelled paths match no image" in labelled.warnings[0]


def edited(**changes):
    return [row | changes for row in patient_rows()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row | {"path": "x/" + row["path"]} for row in patient_rows()],
         r"no path matches .*'x/p00_0.png'.*p00_0.png"),
        (edited(label="ill"), "only the class 'ill'"),
        (edited(label=""), "no labelled image"),
        ([*patient_rows(), patient_rows()[3] | {"label": "well"}],
         "rows 5 and 22 are about the same image, and the label differs"),
        (edited(split="tset"), "row 2 has split 'tset', .*did you mean 'test'"),
        (edited(split="train"), "no image of 'ill', 'well' in test"),
        (with_split(patient_rows(), lambda row: "train" if row["label"] == "ill" else "test"),
         "no image of 'well' in train"),
        (with_split(patient_rows(), lambda row: "test" if row["patient"] == "Doe1" else "train"),
         "no image of 'well' in test"),
        ([{"place": row["path"], "label": row["label"]} for row in patient_rows()],
         "no column 'path' .its columns: place, label.; call the one"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_used_are_one_clear_line(images, tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as error:
        load(images, write_csv(tmp_path / "labels.csv", rows))
    assert "\n" not in str(error.value)


def test_a_missing_column_of_labels_names_the_columns(images, tmp_path):
    with pytest.raises(UserError, match=r"no column 'labels'; did you mean 'label'.*path, label"):
        load(images, write_csv(tmp_path / "l.csv", patient_rows()), label_column="labels")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00path", b""])
def test_a_file_that_is_no_table_is_refused(images, tmp_path, content):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.csv"):
        load(images, tmp_path / "labels.csv")


@pytest.mark.parametrize("labels", ["folders", "nowhere.csv"])
def test_labels_that_do_not_exist_are_refused(images, labels):
    with pytest.raises(UserError, match="no such file of labels"):
        load(images, labels)


def test_images_without_class_folders_are_refused(images):
    with pytest.raises(UserError, match="no image is in a folder below"):
        load(images, "folder")


def test_patients_of_headers_are_used_where_the_labels_name_none(tmp_path):
    """Four images of each of ten patients, whose keys are hashes with any salt."""
    files = [tmp_path / f"{number:02}.dcm" for number in range(40)]
    refs = [
        ImageRef(path=file, height=2, width=2, patient=f"{number // 4 * 7919 % 97:02x}")
        for number, file in enumerate(files)
    ]
    table = tmp_path / "labels.csv"
    rows = [f"{file.name},{'ab'[number // 4 % 2]}\n" for number, file in enumerate(files)]
    table.write_text("path,label\n" + "".join(rows))
    labelled = load_labels(table, refs, [tmp_path])
    assert (labelled.split_by, labelled.patients_known) == ("patient", True)
    sides = {}
    for patient, test in zip(labelled.patients, labelled.is_test, strict=True):
        sides.setdefault(patient, set()).add(bool(test))
    assert len(sides) == 10
    assert all(len(side) == 1 for side in sides.values())
    assert not any("patients" in warning for warning in labelled.warnings)


def test_a_given_split_is_checked_by_the_patients_of_headers(tmp_path):
    refs = [
        ImageRef(path=tmp_path / f"{n}.dcm", height=2, width=2, patient="ab" if n < 2 else f"{n}")
        for n in range(6)
    ]
    table = tmp_path / "labels.csv"
    sides = ("train", "test", "train", "test", "train", "test")
    rows = [f"{n}.dcm,{'ab'[n % 4 // 2]},{side}\n" for n, side in enumerate(sides)]
    table.write_text("path,label,split\n" + "".join(rows))
    with pytest.raises(UserError, match="1 of 5 patients are in more than one split"):
        load_labels(table, refs, [tmp_path])


def test_patients_of_the_table_come_before_those_of_headers(tmp_path):
    refs = [ImageRef(path=tmp_path / f"{n}.dcm", height=2, width=2, patient="ab") for n in range(4)]
    table = tmp_path / "labels.csv"
    rows = [f"{n}.dcm,{'ab'[n % 2]},p{n}\n" for n in range(4)]
    table.write_text("path,label,patient\n" + "".join(rows))
    labelled = load_labels(table, refs, [tmp_path])
    assert len(set(labelled.patients)) == 4


def test_patients_of_the_table_are_kept_apart_in_training_where_files_name_none(images, tmp_path):
    """Also of images without a label; and no name of a patient is kept, but a salted key."""
    rows = patient_rows()
    rows[0]["label"] = ""
    table = write_csv(tmp_path / "labels.csv", rows)
    refs = build_index([images], verify="headers").rows
    keys = keys_of_patients(table, refs, [images], "label")
    patient = {images / row["path"]: row["patient"] for row in rows}
    assert {file: patient[file] for file in keys} == patient
    assert len(set(keys.values())) == len(set(patient.values()))
    assert not set(keys.values()) & set(patient.values())
    several = [ref for ref in refs if sum(of == patient[ref.path] for of in patient.values()) > 1]
    assert several
    for step in range(20):
        batch = sample_indices(0, step, 4, len(refs), order_of(refs, patients=keys))
        assert len({patient[refs[row].path] for row in batch}) == 4
    known = [replace(ref, patient="key") for ref in refs]
    assert keys_of_patients(table, known, [images], "label") == {}
    assert keys_of_patients("folder", refs, [images], "label") == {}
