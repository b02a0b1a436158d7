"""Tables of labels mean what they would mean in plain CSV, whatever wrote them."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dino_x.data.index.label_tables import read_table
from dino_x.data.index.labels import load_labels
from dino_x.errors import UserError
from tests.data.index.test_labels import load, names, with_split
from tests.evaluation.conftest import patient_rows, write_csv, write_image

HEADER = ("path", "label", "patient")


def written(path, rows, separator=",", encoding="utf-8", quote="", ending="\n"):
    lines = [separator.join(f"{quote}{value}{quote}" for value in row) for row in rows]
    path.write_bytes((ending.join(lines) + ending).encode(encoding))
    return path


def of_columns(file, **columns):
    parquet.write_table(pa.table(columns), file)
    return file


def plain_rows():
    return [tuple(row[name] for name in HEADER) for row in patient_rows()]


@pytest.mark.parametrize(
    "how",
    [
        {"separator": ";"},
        {"separator": "\t"},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"separator": ";", "quote": '"', "ending": "\r\n"},
        {"separator": "\t", "encoding": "utf-16", "ending": "\r\n"},
    ],
)
def test_a_table_means_the_same_however_it_is_written(tmp_path, how):
    expected = read_table(written(tmp_path / "plain.csv", [HEADER, *plain_rows()]), "label")
    found = read_table(written(tmp_path / "other.csv", [HEADER, *plain_rows()], **how), "label")
    assert found == expected
    assert len(found) == 20


@pytest.mark.parametrize(
    "header",
    [
        ("Path", "Label", "Patient", "Split"),
        ("Image Index", "label", "Patient ID", "SPLIT"),
        ("file_name", "label", "subject_id", "split"),
        ("filepath", "LABEL", "PatientID", "Split"),
    ],
)
def test_patients_and_a_split_are_seen_however_their_columns_are_called(images, tmp_path, header):
    rows = [(*row, "test" if int(row[2].removeprefix("Doe")) >= 6 else "train")
            for row in plain_rows()]  # fmt: skip
    labelled = load(images, written(tmp_path / "l.csv", [header, *rows]))
    assert labelled.split_by == "given"
    assert labelled.patients_known
    assert set(labelled.patients[labelled.is_test]) == {"Doe6", "Doe7", "Doe8", "Doe9"}


def test_splits_may_be_called_as_folders_are(images, tmp_path):
    rows = with_split(patient_rows(), lambda r: "Training" if r["patient"] < "Doe6" else "TESTING")
    labelled = load(images, write_csv(tmp_path / "l.csv", rows))
    assert labelled.split_by == "given"
    assert (~labelled.is_test).sum() == 12


def test_a_row_without_a_split_beside_others_with_one_is_refused(images, tmp_path):
    rows = with_split(patient_rows(), lambda r: "train" if r["patient"] < "Doe6" else "")
    with pytest.raises(UserError, match="row 14 has no split, and others have one"):
        load(images, write_csv(tmp_path / "l.csv", rows))


def test_backslashes_between_folders(images, tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    for number in range(8):
        write_image(tmp_path / "data" / "sub" / f"{number}.png", number, bright=number % 2 == 1)
    rows = [(rf"data\sub\{n}.png", "ab"[n % 2], f"p{n}") for n in range(8)]
    labelled = load(tmp_path / "data", written(tmp_path / "l.csv", [HEADER, *rows]))
    assert len(labelled.refs) == 8


def test_rows_that_say_the_same_are_counted_and_others_refused(images, tmp_path):
    again = [*plain_rows(), plain_rows()[0], plain_rows()[0]]
    labelled = load(images, written(tmp_path / "l.csv", [HEADER, *again]))
    assert len(labelled.refs) == 20
    assert labelled.left_out == {"rows that say of an image what another row says": 2}
    first = plain_rows()[0]
    for other, what in (
        ((first[0], "ill", first[2]), "the label differs"),
        ((first[0], first[1], "Doe5"), "the patient, split, volume or slide differs"),
    ):
        table = written(tmp_path / "l.csv", [HEADER, *plain_rows(), other])
        with pytest.raises(UserError, match=f"rows 2 and 22 .*{what}"):
            load(images, table)


@pytest.mark.parametrize("nothing", ["nan", "NaN", "NA", "N/A", "<NA>", "null", ""])
def test_what_is_not_known_is_no_class_and_no_patient(images, tmp_path, nothing):
    rows = [(path, nothing if n < 4 else label, nothing if n in (6, 9) else patient)
            for n, (path, label, patient) in enumerate(plain_rows())]  # fmt: skip
    labelled = load(images, written(tmp_path / "l.csv", [HEADER, *rows]))
    assert labelled.classes == ["ill", "well"]
    assert labelled.left_out == {"images with an empty label": 4}
    unknown = [of for of in labelled.patients if of.startswith("file ")]
    assert len(set(unknown)) == 2  # each by itself, and no patient called nan


def test_none_is_a_class(images, tmp_path):
    rows = [(path, label.replace("well", "None"), patient) for path, label, patient in plain_rows()]
    assert load(images, written(tmp_path / "l.csv", [HEADER, *rows])).classes == ["None", "ill"]


def test_1_and_1_point_0_are_one_class_and_numbers_beside_words_stay(images, tmp_path):
    spelled = {"ill": ("1", "1.0"), "well": ("0", "0.00")}
    rows = [(path, spelled[label][n % 2], patient)
            for n, (path, label, patient) in enumerate(plain_rows())]  # fmt: skip
    assert load(images, written(tmp_path / "l.csv", [HEADER, *rows])).classes == ["0", "1"]
    versions = [(path, {"1": "v1.0", "1.0": "v1.0"}.get(label, label), patient)
                for path, label, patient in rows]  # fmt: skip
    found = load(images, written(tmp_path / "l.csv", [HEADER, *versions]))
    assert found.classes == ["0", "0.00", "v1.0"]


def test_a_value_too_many_and_a_column_twice_are_refused(images, tmp_path):
    rows = [HEADER, *plain_rows()[:3], (*plain_rows()[3], "left"), *plain_rows()[4:]]
    with pytest.raises(
        UserError, match=r"row 5 has 4 values and the header 3: put quotation marks"
    ):
        load(images, written(tmp_path / "l.csv", rows))
    rows = [("path", "label", "label", "patient"), *[(a, b, "x", c) for a, b, c in plain_rows()]]
    with pytest.raises(UserError, match="has 2 columns 'label': rename"):
        load(images, written(tmp_path / "l.csv", rows))


def test_text_of_another_encoding_says_how_to_write_it(images, tmp_path):
    rows = [(path, label.replace("well", "gr\xf6\xdfer"), who) for path, label, who in plain_rows()]
    table = written(tmp_path / "l.csv", [HEADER, *rows], encoding="latin-1")
    with pytest.raises(UserError, match="save it as 'CSV UTF-8' in Excel, or say 'iconv"):
        load(images, table)


def test_numbers_with_a_decimal_comma_between_semicolons(images, tmp_path):
    rows = [(path, f"{20 + n},5", patient) for n, (path, _, patient) in enumerate(plain_rows())]
    rows.append(("", "", ""))
    table = written(tmp_path / "l.csv", [HEADER, *rows], separator=";")
    targets = load(images, table, label_column="label:number").targets
    assert targets.values_NL[:, 0].min() == 20.5


def test_numbers_are_classes_or_not_as_the_user_says(tmp_path):
    for number in range(60):
        write_image(tmp_path / "data" / f"{number:02d}.png", number)
    few = [(f"{n:02d}.png", str(n % 3), f"p{n}") for n in range(60)]
    table = written(tmp_path / "data" / "few.csv", [("path", "grade", "patient"), *few])
    assert load(tmp_path / "data", table, label_column="grade").classes == ["0", "1", "2"]
    targets = load(tmp_path / "data", table, label_column="grade:number").targets
    assert (targets.kind, targets.names) == ("numbers", ("grade",))
    many = [(f"{n:02d}.png", str(n % 25), f"p{n}") for n in range(60)]
    table = written(tmp_path / "data" / "many.csv", [("path", "kind", "patient"), *many])
    assert load(tmp_path / "data", table, label_column="kind").targets.kind == "numbers"
    assert len(load(tmp_path / "data", table, label_column="kind:class").classes) == 25
    noted = [(path, "unknown" if n % 3 == 0 else label, who) for n, (path, label, who)
             in enumerate(many)]  # fmt: skip
    table = written(tmp_path / "data" / "noted.csv", [("path", "kind", "patient"), *noted])
    with pytest.raises(UserError, match=r"20 values such as 'unknown' .* say 'kind:class'"):
        load(tmp_path / "data", table, label_column="kind")


def test_columns_of_parquet_of_every_type(images, tmp_path):
    paths, labels, patients = zip(*plain_rows(), strict=True)
    ill = [label == "ill" for label in labels]
    unknown = [index in (0, 1, 2) for index in range(20)]
    numbers = [float("nan") if gone else float(yes) for yes, gone in zip(ill, unknown, strict=True)]
    of_patient = [float(patient.removeprefix("Doe")) for patient in patients]
    for name, column, classes, left_out in (
        ("nulls", [None if gone else of for of, gone in zip(labels, unknown, strict=True)],
         ["ill", "well"], 3),
        ("numbers with NaN", pa.array(numbers, from_pandas=False), ["0", "1"], 3),
        ("booleans", ill, ["False", "True"], 0),
        ("categories", pa.array(labels).dictionary_encode(), ["ill", "well"], 0),
        ("bytes", [of.encode() for of in labels], ["ill", "well"], 0),
        ("dates", [datetime.date(2020, 1, 1 + yes) for yes in ill],
         ["2020-01-01", "2020-01-02"], 0),
    ):  # fmt: skip
        table = of_columns(tmp_path / "t.parquet", path=paths, label=column, patient=of_patient)
        labelled = load(images, table)
        assert labelled.classes == classes, name
        assert labelled.left_out.get("images with an empty label", 0) == left_out, name
        assert set(labelled.patients) <= {str(number) for number in range(10)}, name


def test_lists_of_parquet_are_several_labels(images, tmp_path):
    paths, labels, patients = zip(*plain_rows(), strict=True)
    lists = [["mass", "nodule"] if label == "ill" else [] for label in labels]
    table = of_columns(tmp_path / "t.parquet", path=paths, label=lists, patient=patients)
    targets = load(images, table).targets
    assert (targets.kind, targets.names) == ("several", ("mass", "nodule"))
    assert targets.values_NL.sum() == 20


def test_a_row_may_be_about_a_folder_such_as_a_study(tmp_path):
    for number in range(24):
        write_image(tmp_path / "data" / f"study{number // 3}" / f"{number}.png", number)
    rows = [(f"study{n}", "ab"[n % 2], f"p{n // 2}") for n in range(8)]
    labelled = load(tmp_path / "data", written(tmp_path / "l.csv", [HEADER, *rows]))
    assert len(labelled.refs) == 24
    for ref, label in zip(labelled.refs, labelled.labels, strict=True):
        assert label == "ab"[int(ref.path.parent.name.removeprefix("study")) % 2]
    rows.append(("study0/0.png", "b", "p0"))  # and the row of its folder says a
    with pytest.raises(UserError, match="rows 2 and 10 are about the same image"):
        load(tmp_path / "data", written(tmp_path / "l.csv", [HEADER, *rows]))


def test_a_label_of_few_patients_is_on_both_sides_of_a_made_split(tmp_path):
    for number in range(60):
        write_image(tmp_path / f"{number:02d}.png", number)
    rows = [(f"{n:02d}.png", "common|rare" if n in (7, 31) else "common|" * (n % 2) + "|", f"p{n}")
            for n in range(60)]  # fmt: skip
    labelled = load(tmp_path, written(tmp_path / "l.csv", [HEADER, *rows]))
    rare = labelled.targets.values_NL[:, labelled.targets.names.index("rare")] > 0
    assert rare.sum() == 2
    assert labelled.is_test[rare].tolist().count(True) == 1
    assert set(labelled.labels) == {"all"}


def test_patients_who_are_written_in_two_ways_stay_on_one_side(images, tmp_path):
    def respelled(patient, image):
        return patient if image else f" {patient.upper().replace('DOE', 'Doe 00')}"

    rows = [(path, label, respelled(patient, n % 2)) for n, (path, label, patient)
            in enumerate(plain_rows())]  # fmt: skip
    labelled = load(images, written(tmp_path / "l.csv", [HEADER, *rows]))
    side = {}
    for ref, test in zip(labelled.refs, labelled.is_test, strict=True):
        side.setdefault(ref.path.name.partition("_")[0], set()).add(bool(test))
    assert all(len(of) == 1 for of in side.values())
    assert "10 names of patients are written in two ways" in labelled.warnings[0]
    assert "Doe" not in labelled.warnings[0]


def test_one_patient_in_two_spellings_across_a_given_split_is_said(images, tmp_path):
    rows = [(path, label, patient if n % 2 else patient.upper(), "train" if n % 2 else "test")
            for n, (path, label, patient) in enumerate(plain_rows())]  # fmt: skip
    labelled = load(images, written(tmp_path / "l.csv", [(*HEADER, "split"), *rows]))
    assert "of which 10 are in more than one of the given splits" in labelled.warnings[0]
    assert labelled.is_test.sum() == 10


def test_classes_that_differ_in_capitals_alone_are_said(images, tmp_path):
    rows = [(path, label.upper() if n % 8 < 4 else label, patient)
            for n, (path, label, patient) in enumerate(plain_rows())]  # fmt: skip
    labelled = load(images, written(tmp_path / "l.csv", [HEADER, *rows]))
    assert any("'ILL' and 'ill'" in line or "'WELL' and 'well'" in line
               for line in labelled.warnings)  # fmt: skip


def test_a_table_for_the_files_of_two_folders_keeps_its_order(images, tmp_path):
    table = written(tmp_path / "l.csv", [HEADER, *plain_rows()])
    assert len(load_labels(table, load(images, table).refs, [images]).refs) == 20
    assert names(load(images, table)) == sorted(row[0] for row in plain_rows())
    assert np.all(load(images, table).patients == [row[2] for row in plain_rows()])
