"""An index that is kept: `dino-x index`, and `pretrain --index`."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dino_x.cli import main
from dino_x.data import identity
from dino_x.data.image import DEFAULT, Reading
from dino_x.data.index import catalog, headers, table
from dino_x.data.index.catalog import update
from dino_x.data.index.index import build_index
from dino_x.data.index.table import SCHEMA, read_table
from dino_x.data.readers import registry
from dino_x.errors import UserError


@pytest.fixture
def read_now(monkeypatch):
    """The names of the files whose headers are read."""
    names = []
    refs = registry.refs

    def noted(path, reading):
        names.append(path.name)
        return refs(path, reading)

    monkeypatch.setattr(registry, "refs", noted)
    return names


@pytest.fixture
def data(tmp_path, write_png, write_dicom):
    """Two folders of PNG, a DICOM of two frames, and a broken file."""
    for number in range(6):
        write_png(f"data/{'ab'[number % 2]}/{number}.png", number)
    path = write_dicom(
        np.zeros((2, 9, 7), dtype=np.uint16),
        NumberOfFrames=2, Modality="CT", SeriesInstanceUID="1.2.3", PixelSpacing=[0.5, 0.25],
        SliceThickness=2.5, BodyPartExamined="CHEST", RescaleSlope=2, RescaleIntercept=-1000,
        ImagePositionPatient=[0, 0, -7.5], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        WindowCenter=40, WindowWidth=401,
    )  # fmt: skip
    shutil.move(path, tmp_path / "data" / "ct.dcm")
    (tmp_path / "data" / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "data" / "notes.txt").write_text("nothing")
    return tmp_path / "data"


def kept(folder, out, **more):
    return update([folder], reading=DEFAULT, kept_in=out, **more)


def test_the_table_holds_what_the_headers_say(data, tmp_path):
    kept(data, tmp_path / "i.parquet")
    rows = pq.read_table(tmp_path / "i.parquet").to_pylist()
    assert [row["path"] for row in rows] == [
        "a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png", "broken.png",
        "ct.dcm", "ct.dcm",
    ]  # fmt: skip
    ct = rows[-1]
    assert len(ct["patient"]) == len(ct["series"]) == len(ct["content"]) == 20
    status = (data / "ct.dcm").stat()
    assert ct == {
        "path": "ct.dcm", "source": str(data), "format": "DICOM", "frame": 1, "slice_axis": None,
        "height": 9, "width": 7, "bits": 16, "modality": "CT", "body_part": "CHEST",
        "spacing_row_mm": 0.5, "spacing_column_mm": 0.25, "thickness_mm": 2.5,
        "position_mm": -7.5, "slope": 2.0, "intercept": -1000.0, "photometric": "MONOCHROME2",
        "window_low": -160.5, "window_high": 239.5, "patient": ct["patient"],
        "series": ct["series"], "label": None, "size": status.st_size,
        "mtime_ns": status.st_mtime_ns, "content": ct["content"], "unusable": None,
        "shard": None, "offset": None, "row_group": None, "row": None, "shard_size": None,
        "etag": None, "channels": 1, "kind": None, "image_type": None,
        "sop_class": "SecondaryCaptureImageStorage",
        "orientation": "1 0 0 0 1 0", "stack": ct["stack"], "acquisition": None, "remark": None,
    }  # fmt: skip
    broken = rows[6]
    assert (broken["unusable"], broken["frame"]) == ("not an image", None)


def test_a_table_comes_back_as_it_was(data, tmp_path):
    found = kept(data, tmp_path / "i.parquet").table
    back = read_table(tmp_path / "i.parquet")
    assert back.records == found.records
    assert back.sources == found.sources
    assert (back.reading, back.complete, back.salt) == (DEFAULT, True, identity.fingerprint())


def test_only_what_is_new_or_changed_is_read(data, tmp_path, read_now, write_png):
    out = tmp_path / "i.parquet"
    first = kept(data, out)
    assert (first.read, first.kept, first.gone) == (8, 0, 0)
    assert sorted(set(read_now)) == sorted(
        [*(f"{number}.png" for number in range(6)), "broken.png", "ct.dcm"]
    )
    read_now.clear()
    second = kept(data, out)
    assert (second.read, second.kept, second.gone) == (0, 8, 0)
    assert read_now == []
    assert second.table == first.table

    write_png("data/a/new.png", 9)
    write_png("data/a/2.png", 8, shape=(20, 21))
    (data / "b" / "1.png").unlink()
    third = kept(data, out)
    assert sorted(read_now) == ["2.png", "new.png"]
    assert (third.read, third.kept, third.gone) == (2, 6, 1)
    assert third.table.records == update([data], reading=DEFAULT).table.records


def test_a_file_of_the_same_size_that_was_changed_is_read(data, tmp_path, read_now):
    out = tmp_path / "i.parquet"
    kept(data, out)
    read_now.clear()
    status = (data / "broken.png").stat()
    (data / "broken.png").write_bytes(b"not a pictura")
    os.utime(data / "broken.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    kept(data, out)
    assert read_now == ["broken.png"]


@pytest.mark.parametrize("change", ["salt", "reading"])
def test_an_index_made_otherwise_is_made_again_and_it_is_said(data, tmp_path, monkeypatch, change):
    out = tmp_path / "i.parquet"
    kept(data, out)
    reading = DEFAULT
    if change == "salt":
        monkeypatch.setattr(identity, "_salt", b"another".ljust(32))
    else:
        reading = Reading("coronal")
    again = update([data], reading=reading, kept_in=out)
    assert again.read == 8
    assert "all files are read again" in again.notes[0]


def test_an_interrupted_index_goes_on_where_it_was(data, tmp_path, monkeypatch, read_now):
    out = tmp_path / "i.parquet"
    monkeypatch.setattr(headers, "_PORTION", 1)

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(data, out, workers=1, on_progress=stop)
    half = read_table(out)
    assert len(half.records) == 3
    assert not half.complete
    with pytest.raises(UserError, match="is unfinished: finish it with `dino-x index"):
        build_index([out])
    before = len(read_now)
    whole = kept(data, out)
    assert (whole.kept, whole.read) == (3, 5)
    assert len(read_now) - before <= 5 + 1  # one may have been read ahead, and not been kept
    assert whole.table.records == update([data], reading=DEFAULT).table.records


def test_what_is_known_is_written_now_and_then(data, tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "SAVE_EVERY", 0.0)
    states = []
    write = catalog.write_table
    monkeypatch.setattr(
        catalog, "write_table", lambda t, p: (states.append(len(t.records)), write(t, p))
    )
    kept(data, tmp_path / "i.parquet")
    assert states == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


@pytest.mark.slow
def test_a_killed_process_loses_half_a_minute_at_most(tmp_path, write_png):
    for number in range(30):
        write_png(f"data/{number:02}.png", number)
    out = tmp_path / "i.parquet"
    script = (
        "import time, sys; from pathlib import Path; from dino_x.data.index import catalog;"
        "from dino_x.data.readers import registry;"
        "catalog.SAVE_EVERY = 0.05; refs = registry.refs;"
        "registry.refs = lambda *a: (time.sleep(0.1), refs(*a))[1];"
        "from dino_x.data.index import headers; headers._PORTION = 1;"
        "from dino_x.data.image import DEFAULT;"
        "catalog.update([Path(sys.argv[1])], reading=DEFAULT, kept_in=Path(sys.argv[2]), workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "data"), str(out)])
    deadline = time.monotonic() + 60
    while not (out.exists() and len(read_table(out).records) >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = read_table(out)
    assert 3 <= len(left.records) < 30
    assert kept(tmp_path / "data", out).kept == len(left.records)


def test_a_full_disk_loses_nothing(data, tmp_path, monkeypatch, capsys, write_png):
    out = tmp_path / "i.parquet"
    kept(data, out)
    before = out.read_bytes()
    write_png("data/a/new.png", 9)

    def full(rows, where, **_):
        where.write(b"PAR1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(table.pq, "write_table", full)
    assert main(["index", str(data), "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dino-x: cannot write ")
    assert "No space left on device; nothing that was there is lost" in printed
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "i.parquet"]
    (data / "broken.png").unlink()
    index = build_index([data], kept_in=out)  # a run does without, and says so
    assert len(index) == 9
    assert "No space left on device" in index.notes[0]
    assert "continuing without an index" in index.notes[0]


def test_an_index_is_a_path_to_train_on(data, tmp_path, read_now, write_png):
    for number in range(6, 12):
        write_png(f"data/b/{number}.png", number)
    out = tmp_path / "i.parquet"
    kept(data, out)
    read_now.clear()
    direct = build_index([data], verify="headers")
    read_now.clear()
    from_table = build_index([out], verify="headers")
    assert from_table.rows == direct.rows
    assert from_table.skipped == direct.skipped
    assert read_now == []


def test_indexes_and_folders_together_count_each_file_once(data, tmp_path, write_png):
    (data / "broken.png").unlink()
    out = tmp_path / "i.parquet"
    kept(data, out)
    write_png("more/1.png", 3)
    found = build_index([tmp_path / "more", out, data], verify="headers")
    assert len(found) == 9
    sources = {row.path.name: row.source for row in found.rows}
    assert sources["1.png"] in (0, 1)
    assert {row.source for row in found.rows} == {0, 1}


def test_sources_of_an_index_keep_their_numbers(data, tmp_path):
    out = tmp_path / "i.parquet"
    update([data / "b", data / "a"], reading=DEFAULT, kept_in=out)
    rows = build_index([out], verify="headers").rows
    assert [(row.path.parent.name, row.source) for row in rows] == [("a", 1)] * 3 + [("b", 0)] * 3


def test_threads_and_processes_find_the_same(data, tmp_path, monkeypatch):
    threads = update([data], reading=DEFAULT, workers=2)
    monkeypatch.setattr(headers, "PROCESSES_FROM", 1)
    monkeypatch.setattr(headers, "_PORTION", 3)
    processes = update([data], reading=DEFAULT, workers=2)
    assert processes.table == threads.table  # the keys too: the processes have the same salt


def test_what_killed_processes_leave_is_read_here(data, monkeypatch):
    class Killed(ThreadPoolExecutor):
        def map(self, work, portions):
            yield work(portions[0])
            raise BrokenProcessPool

    monkeypatch.setattr(headers, "_PORTION", 3)
    whole = update([data], reading=DEFAULT, workers=1)
    monkeypatch.setattr(headers, "_executor", lambda files, workers: Killed(workers))
    assert update([data], reading=DEFAULT, workers=2).table == whole.table


def test_a_process_that_may_have_no_children_reads_in_threads(monkeypatch):
    monkeypatch.setattr(headers, "current_process", lambda: SimpleNamespace(daemon=True))
    with headers._executor(10**6, 2) as executor:
        assert isinstance(executor, ThreadPoolExecutor)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 and nothing"), "no index or is damaged; remove it"),
        (lambda path: pq.write_table(pa.table({"a": [1]}), path), "no index made by `dino-x ind"),
        (lambda path: path.mkdir(), "cannot read"),
    ],
)
def test_what_is_no_index_is_not_overwritten(data, tmp_path, capsys, make, message):
    out = tmp_path / "i.parquet"
    make(out)
    assert main(["index", str(data), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err


def test_silly_arguments(data, tmp_path, capsys):
    def refused(*arguments):
        assert main(["index", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    out = tmp_path / "i.parquet"
    assert "must end in .parquet" in refused(data, "--out", tmp_path / "i.csv")
    assert "is an index; name the folders" in refused(out, "--out", out)
    assert "does not exist; did you mean 'data'" in refused(tmp_path / "dta", "--out", out)
    assert "required: --out" in refused(data)
    assert "no such file of labels" in refused(data, "--out", out, "--labels", "l.csv")
    assert len(read_table(out).records) == 8  # what was read is not lost
    out.unlink()
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused(tmp_path / "empty", "--out", tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()


def test_the_summary(data, tmp_path, capsys, write_png, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    shutil.copy(data / "a" / "0.png", data / "b" / "copy.png")
    (data / "cut.dcm").write_bytes((data / "ct.dcm").read_bytes()[:-100])
    (data / "cut2.dcm").write_bytes((data / "ct.dcm").read_bytes()[:-50])
    out = tmp_path / "i.parquet"
    arguments = ["index", str(data), "--out", str(out), "--labels", "folder"]
    assert main(arguments) == 0
    printed = dict(
        line.split(maxsplit=1)
        for line in capsys.readouterr().out.splitlines()
        if line and line[0] != " "
    )
    assert printed["images"] == "9 in 8 files: PNG (7), DICOM (2)"
    assert printed["patients"] == "1; unknown for 7 images"
    assert printed["series"] == "1; unknown for 7 images"
    assert printed["modalities"] == "CT (2); unknown for 7 images"
    assert printed["sizes"] == "12 x 10 (7), 9 x 7 (2)"
    assert printed["spacing"] == "0.5 mm; unknown for 7 images"
    assert printed["thickness"] == "2.5 mm; unknown for 7 images"
    assert printed["labels"] == "b (4), a (3); unknown for 2 images"
    assert printed["duplicates"].startswith("1 file is a copy of another, such as ")
    assert printed["unusable"] == "3 files"
    assert printed["written"].startswith(f"to  {out} (11 files read)")
    assert main(arguments) == 0
    assert "0 files read, 11 kept from before" in capsys.readouterr().out


def test_reasons_are_grouped_whatever_numbers_they_name(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for name, cut in (("cut.dcm", 100), ("cut2.dcm", 50)):
        (data / name).write_bytes((data / "ct.dcm").read_bytes()[:-cut])
    assert main(["index", str(data), "--out", str(tmp_path / "i.parquet")]) == 0
    printed = capsys.readouterr().out
    assert "2  truncated: N of N bytes of pixel data are there, such as cut.dcm" in printed
    assert "1  not an image, broken.png" in printed


def test_labels_of_a_csv_file_are_in_the_table(data, tmp_path):
    (tmp_path / "l.csv").write_text("path,label\na/0.png,calm\nb/1.png,wild\n")
    shutil.move(tmp_path / "l.csv", data / "l.csv")
    out = tmp_path / "i.parquet"
    assert main(["index", str(data), "--out", str(out), "--labels", str(data / "l.csv")]) == 0
    labels = {row["path"]: row["label"] for row in pq.read_table(out).to_pylist()}
    assert (labels["a/0.png"], labels["b/1.png"], labels["a/2.png"]) == ("calm", "wild", None)


def test_names_that_are_not_utf8_are_read_and_kept(data, tmp_path):
    odd = os.fsencode(data) + b"/caf\xe9"
    os.mkdir(odd)
    shutil.copy(data / "a" / "0.png", odd + b"/\xff \\xff.png")
    shutil.copy(data / "a" / "0.png", odd + "/ü\\x5cx.png".encode())
    out = tmp_path / "i.parquet"
    found = kept(Path(os.fsdecode(odd)), out)
    records = read_table(out).records
    assert [record.path for record in records] == [record.path for record in found.table.records]
    assert len(records) == 2
    assert all(record.path.is_file() for record in records)
    assert set(pq.read_table(out)["path"].to_pylist()) == {"\\xff \\x5cxff.png", "ü\\x5cx5cx.png"}
    again = kept(Path(os.fsdecode(odd)), out)
    assert (again.read, again.kept) == (0, 2)


def test_copies_are_told_by_all_of_their_bytes(tmp_path):
    """Samples of the bytes agree in the third; all bytes do in the second alone."""
    from dino_x.data.index.summary import duplicates

    first = bytearray(np.random.default_rng(0).bytes(60_000))
    for name, at in (("a.npy", None), ("b.npy", None), ("c.npy", 10_000)):
        content = bytearray(first)
        if at is not None:
            content[at] ^= 1
        (tmp_path / name).write_bytes(content)
    records = update([tmp_path], reading=DEFAULT).table.records
    assert len({record.content for record in records}) == 1
    assert duplicates(records) == [[tmp_path / "a.npy", tmp_path / "b.npy"]]


def test_every_column_is_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    for name in SCHEMA.names:
        assert f"`{name}`" in page, name


def test_records_are_equal_if_their_files_are(data):
    first, second = (update([data], reading=DEFAULT).table.records for _ in range(2))
    assert first == second
    assert first[0] != replace(first[0], size=1)


def test_headers_that_agree_are_no_copies_if_their_values_differ(tmp_path):
    """Nor are they of one content for what keeps training and evaluation apart."""
    from dino_x.data.index.content import content_key
    from dino_x.data.index.summary import duplicates

    header = "NDims = 2\nDimSize = 4 3\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    for name, value in (("a", 1), ("b", 2), ("c", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mhd").write_text(header)
        (tmp_path / name / "a.raw").write_bytes(bytes([value]) * 12)
    records = update([tmp_path], reading=DEFAULT).table.records
    assert duplicates(records) == [[tmp_path / "b" / "a.mhd", tmp_path / "c" / "a.mhd"]]
    one, other, third = (content_key(tmp_path / name / "a.mhd") for name in "abc")
    assert one != other == third
