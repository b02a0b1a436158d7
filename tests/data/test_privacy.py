"""No identifier of a patient in anything that is written or said."""

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from pydicom.dataset import Dataset

from dino_x.cli import main
from tests.conftest import tiny_settings
from tests.data.packing import pack_parquet, pack_tar

PLANTED = {
    "PatientName": "Zebedee^Quixote",
    "PatientID": "PID-771144",
    "IssuerOfPatientID": "Hosp-8821",
    "PatientBirthDate": "19610817",
    "PatientAddress": "17 Gravel Lane",
    "PatientMotherBirthName": "Umberfield",
    "AccessionNumber": "ACC-990042",
    "ReferringPhysicianName": "Dr^Vandermolen",
    "OperatorsName": "Kowalczyk^Oona",
    "InstitutionName": "St Eligius Infirmary",
    "StationName": "STATION-QX9",
    "StudyDescription": "follow-up of Quillfeather",
    "SeriesDescription": "seen by Yarborough",
    "StudyID": "STU-5150077",
    "StudyDate": "20190229",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.77123",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.88123",
    "ImageComments": "spoke to Winterbottom",
    "BodyPartExamined": "ZEBEDEES LEG",
    "ProtocolName": "as Xanthippe likes it",
}
OTHER = {"OtherPatientIDs": ["OLD-31337", "OLD-41447"]}


@pytest.fixture
def scans(tmp_path, write_dicom, rng):
    """Thirty images of ten patients, and three files that are broken in different ways."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(30):
        other = Dataset()
        other.PatientID = "OTHER-ID-24680"
        values = PLANTED | {
            "PatientID": f"{PLANTED['PatientID']}{number // 3}",
            "OtherPatientIDsSequence": [other],
            "SeriesInstanceUID": f"{PLANTED['SeriesInstanceUID']}.{number // 3}",
            "Modality": "CT" if number % 2 else "QUIXOTE",
        }
        pixels = rng.integers(0, 2000, (40, 48), dtype=np.uint16)
        path = write_dicom(
            pixels, f"{number:02}.dcm", RescaleSlope=1, RescaleIntercept=-1000, **values, **OTHER
        )
        path.rename(folder / path.name)
    whole = (folder / "00.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-500])
    (folder / "head.dcm").write_bytes(whole[:600])
    at = whole.index(b"\x28\x00\x10\x00") + 8  # a name where the number of rows should be
    (folder / "name.dcm").write_bytes(whole[:at] + b"Zebedee^Quixote" + whole[at + 15 :])
    return folder


def values_planted():
    """Every value, and every part of a name that tells something."""
    values = {*PLANTED.values(), *OTHER["OtherPatientIDs"], "OTHER-ID-24680"}
    values |= {part for value in values for part in value.replace("^", " ").split()}
    common = {"of", "to", "by", "as", "it", "likes", "seen", "spoke", "follow-up", "17", "St", "Dr",
              "Lane", "Gravel", "LEG"}  # fmt: skip
    return {value for value in values if value not in common}


def everything_below(folder):
    """(name, bytes) of each file; of Parquet and of archives what is in them, too."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        yield str(path), content
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"{path} (rows)", repr(table.to_pylist()).encode()
            yield f"{path} (metadata)", repr(table.schema.metadata).encode()
        elif zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield f"{path} ({name})", archive.read(name)


@pytest.fixture
def run(capfd, monkeypatch):
    """A command in this process: its status, and all that it said, C libraries too."""
    monkeypatch.setenv("COLUMNS", "300")

    def command(*arguments):
        capfd.readouterr()
        status = main([*map(str, arguments)])
        return status, "".join(capfd.readouterr()).encode()

    return command


def packed_as(kind, scans, packed):
    """The scans as a folder, or packed in one file beside it."""
    packed.mkdir(exist_ok=True)
    if kind == "folder":
        return scans
    return (pack_tar if kind == "tar" else pack_parquet)(scans, packed / f"scans.{kind}")


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_nothing_that_is_written_or_said_holds_an_identifier(scans, tmp_path, run, kind):
    out = tmp_path / "out"
    data = packed_as(kind, scans, tmp_path / "packed")
    status, printed = run("index", data, "--out", out / "index.parquet")
    assert status == 0, printed.decode()
    assert b"30 in 30 files" in printed
    assert b"patients    10, of 3 images" in printed
    assert b"3 files" in printed
    settings = tiny_settings(data__verify="all")
    status, more = run(
        "pretrain", "--data", data, "--out", out / "run", "--index",
        out / "kept.parquet", "--effective-batch", 8, "--micro-batch", 4, "--steps", 2, *settings,
    )  # fmt: skip
    assert status == 0, more.decode()
    printed += more
    # A run that ends with an error: all files are broken.
    for path in scans.glob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-700])
    data = packed_as(kind, scans, tmp_path / "packed")
    status, more = run("pretrain", "--data", data, "--out", out / "no", *settings)
    assert status == 2
    printed += more
    written = [("what was said", printed), *everything_below(out)]
    assert len(written) > 10
    assert any("tfevents" in name for name, _ in written)
    assert any(".pt (" in name for name, _ in written)
    for name, content in written:
        for value in values_planted():
            for form in (value.encode(), value.encode("utf-16-le"), value.lower().encode()):
                assert form not in content, f"{value} is in {name}"


def test_the_search_would_find_them(tmp_path):
    """What the test above rests on: a value in a column, in an archive, in plain text."""
    (tmp_path / "a.txt").write_text("x PID-771144 y")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b"PID-771144" * 100)
    import pyarrow as pa

    pq.write_table(pa.table({"patient": ["PID-771144"] * 9}), tmp_path / "c.parquet")
    found = {Path(name.split(" (")[0]).name for name, content in everything_below(tmp_path)
             if b"PID-771144" in content}  # fmt: skip
    assert found == {"a.txt", "b.pt", "c.parquet"}


def test_training_does_not_depend_on_the_salt(scans, tmp_path, monkeypatch):
    """The same images in the same order, and the same split by patient."""
    from dino_x.data import identity
    from dino_x.data.index.index import build_index
    from dino_x.data.index.labels import load_labels

    for name in ("cut.dcm", "head.dcm", "name.dcm"):
        (scans / name).unlink()
    labels = tmp_path / "labels.csv"
    choice = random.Random(0)
    labels.write_text(
        "path,label\n"
        + "".join(f"scans/{n:02}.dcm,{'ab'[choice.random() < 0.5]}\n" for n in range(30))
    )
    seen = []
    for salt in (b"one", b"two", b"three"):
        monkeypatch.setattr(identity, "_salt", salt.ljust(32))
        index = build_index([scans])
        labelled = load_labels(labels, index.rows, [scans])
        assert labelled.split_by == "patient"
        assert labelled.patients_known
        sides = {patient: set() for patient in labelled.patients}
        for patient, test in zip(labelled.patients, labelled.is_test, strict=True):
            sides[patient].add(bool(test))
        assert len(sides) == 10
        assert all(len(side) == 1 for side in sides.values()), "a patient is on both sides"
        seen.append(
            (
                [row.path for row in index.rows],
                labelled.is_test.tolist(),
                {r.patient for r in index.rows},
            )
        )
    assert seen[0][:2] == seen[1][:2] == seen[2][:2]
    assert not seen[0][2] & seen[1][2]


def test_a_picture_of_a_patient_has_no_text_of_its_own(tmp_path, write_png):
    """Comments and EXIF in pictures are never looked at."""
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    notes.add_text("Patient", PLANTED["PatientName"])
    Pillow.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "a.png", pnginfo=notes)
    from dino_x.data.readers.registry import read, refs

    assert "Zebedee" not in repr(refs(tmp_path / "a.png")) + repr(read(tmp_path / "a.png"))
