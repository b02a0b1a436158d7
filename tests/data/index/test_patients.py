"""Which images are of one patient, and near duplicates that a batch keeps apart."""

from collections import Counter

import nibabel
import numpy as np
import pytest

from dino_x.data import identity
from dino_x.data.image import DEFAULT
from dino_x.data.index.catalog import update
from dino_x.data.index.index import build_index
from dino_x.data.loading.sampler import sample_indices, strata_of
from dino_x.data.readers.registry import refs
from dino_x.errors import UserError
from tests.data.conftest import make_dicom_file

PIXELS = np.arange(12, dtype=np.uint16).reshape(3, 4)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def put(folder, name, **elements):
    make_dicom_file(folder / name, PIXELS, SeriesInstanceUID=f"1.2.{name}", **elements)


def patients(folder, **more):
    records = update([folder], reading=DEFAULT, **more).table.records
    return [record.refs[0].patient for record in records]


def test_the_same_patient_with_and_without_an_issuer_is_one(folder):
    put(folder, "1", PatientID="12", IssuerOfPatientID="A")
    put(folder, "2", PatientID="12")
    put(folder, "3", PatientID="13")
    one, two, three = patients(folder)
    assert one == two != three


def test_a_number_of_two_issuers_is_two_patients(folder):
    put(folder, "1", PatientID="12", IssuerOfPatientID="A")
    put(folder, "2", PatientID="12", IssuerOfPatientID="B")
    put(folder, "3", PatientID="12", IssuerOfPatientID="A")
    one, two, three = patients(folder)
    assert one == three != two


def test_an_issuer_that_comes_later_parts_them_again(folder, tmp_path):
    out = tmp_path / "i.parquet"
    put(folder, "1", PatientID="12", IssuerOfPatientID="A")
    put(folder, "2", PatientID="12")
    assert len(set(patients(folder, kept_in=out))) == 1
    put(folder, "3", PatientID="12", IssuerOfPatientID="B")
    assert len(set(patients(folder, kept_in=out))) == 3


@pytest.mark.parametrize("word", ["ANONYMOUS", "anon", "0000", "Un-Known", "XXXX", "none", "0"])
def test_a_placeholder_is_no_patient_and_is_remarked_on(folder, word):
    for number in range(3):
        put(folder, str(number), PatientID=word)
    index = build_index([folder])
    assert {row.patient for row in index.rows} == {None}
    assert index.notes == ["3 images: PatientID is a placeholder: patients are not known"]


@pytest.mark.parametrize("number", ["PAT-0001", "10", "X1", "Anonymous-7"])
def test_a_number_is_no_placeholder(folder, number):
    put(folder, "1", PatientID=number)
    (row,) = build_index([folder]).rows
    assert row.patient is not None
    assert row.remark is None


@pytest.mark.parametrize(("series", "said"), [(12, True), (3, False)])
def test_a_single_patient_of_many_series_is_remarked_on(folder, series, said):
    for number in range(series):
        put(folder, f"{number:02d}", PatientID="STUDY-7")
    notes = build_index([folder]).notes
    assert any("series have the same PatientID" in note for note in notes) is said


def test_times_of_a_volume_are_kept_apart_in_a_batch(folder):
    """A run of 20 volumes of one head, of 4 slices each: a slice looks the same every time."""
    values = np.random.default_rng(0).normal(size=(6, 7, 4, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / "rest_bold.nii.gz")
    rows = build_index([folder]).rows
    assert len(rows) == 80
    strata = strata_of(rows)
    for step in range(30):
        batch = [rows[row] for row in sample_indices(0, step, 8, len(rows), strata)]
        assert max(Counter(ref.position_mm for ref in batch).values()) <= 2
        assert len({(ref.series, ref.position_mm) for ref in batch}) == 8


def test_frames_of_a_cine_without_a_series_are_one(folder):
    make_dicom_file(folder / "cine", np.zeros((5, 3, 4), np.uint8), NumberOfFrames=5, Modality="US")
    found = refs(folder / "cine")
    assert len({ref.series for ref in found}) == 1
    assert found[0].series is not None


@pytest.mark.parametrize(
    ("elements", "remark"),
    [
        ({"BitsStored": 12, "HighBit": 15}, "HighBit is not BitsStored - 1"),
        ({"PixelData": bytes(24 * 4)}, "more pixel data than its number of frames"),
    ],
)
def test_what_a_header_leaves_open_is_remarked_on(folder, elements, remark):
    put(folder, "1", **elements)
    index = build_index([folder])
    assert index.rows[0].remark.startswith(remark)
    assert index.notes[0].startswith(f"1 images: {remark}")


def index_under(salt, folder, out, monkeypatch):
    """An index of a folder as a user with another salt makes it."""
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_salt", salt)
        identity._hash.cache_clear()
        update([folder], reading=DEFAULT, kept_in=out, workers=1)
    return out


def test_patients_of_two_salts_are_refused(tmp_path, monkeypatch):
    """The same patient has two keys there, so all tested patients could be trained on."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        put(folder, "1", PatientID="12")
    indexes = [
        index_under(bytes([number] * 32), folder, folder.with_suffix(".parquet"), monkeypatch)
        for number, folder in enumerate(folders)
    ]
    for together in (indexes, [indexes[0], folders[1]]):
        with pytest.raises(UserError, match=r"one and of .*two have keys that two users"):
            update(together, reading=DEFAULT)
    assert len(update(indexes[:1], reading=DEFAULT).table.records) == 1


def test_images_without_patients_may_be_of_two_salts(tmp_path, monkeypatch):
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        np.save(folder / "1.npy", PIXELS + number)
    indexes = [
        index_under(bytes([number] * 32), folder, folder.with_suffix(".parquet"), monkeypatch)
        for number, folder in enumerate(folders)
    ]
    assert len(update(indexes, reading=DEFAULT).table.records) == 2


def test_an_issuer_in_one_of_two_indexes_alone_is_no_second_patient(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    put(folders[0], "1", PatientID="12", IssuerOfPatientID="A")
    put(folders[1], "2", PatientID="12")
    indexes = [folder.with_suffix(".parquet") for folder in folders]
    for folder, index in zip(folders, indexes, strict=True):
        update([folder], reading=DEFAULT, kept_in=index)
    records = update(indexes, reading=DEFAULT).table.records
    assert len({record.refs[0].patient for record in records}) == 1
