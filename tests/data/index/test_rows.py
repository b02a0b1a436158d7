"""A large index gives the same images, in the same order and the same batches, as one in memory."""

import contextlib
import io
import os
import pickle
import shutil
from collections import Counter
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dino_x.commands.index import make_index
from dino_x.data.image import DEFAULT, ImageRef
from dino_x.data.index import large, listed
from dino_x.data.index.headers import Record
from dino_x.data.index.index import build_index, is_plain
from dino_x.data.index.rows import Rows, counts_of, hash_of_rows
from dino_x.data.index.table import Table, write_table
from dino_x.data.loading import order, sampler
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.order import order_of
from dino_x.data.loading.sampler import sample_indices, strata_of
from dino_x.data.storage.archives import Archive
from dino_x.data.storage.member import Member
from dino_x.errors import UserError
from dino_x.runs.trained_on import keys_of_images

KINDS = (None, None, None, None, "localizer", "map")
REMARKS = (None, None, None, "a remark", "another remark")


def records_of(folder: Path, seed: int, source: int = 0, files: int = 100) -> list[Record]:
    """Files of 1 to 4 images, in tars and outside, of patients that alternate, some unusable."""
    rng = np.random.default_rng(seed)
    archive = Archive(folder / "a.tar", 10**6, 5)
    found = []
    for number in range(files):
        name = (
            f"{rng.integers(4)}/{number:03}\udce9.dcm" if number % 50 == 7 else f"{number:03}.dcm"
        )
        path: Path = folder / name
        if number % 3 == 0:
            path = Member(archive.path / name, archive, 512 * number, 400)
        if number % 40 == 9:
            reason = "no pixel data: a report" if number % 80 == 9 else "truncated"
            found.append(Record(folder / name, source, 10, 1, (), reason))
            continue
        who = int(rng.integers(25))
        patient = {0: None, 1: f"p{who}-i1", 2: f"p{who}-i{who % 2}"}.get(who % 4, f"p{who}")
        series = None if who % 5 == 0 else f"s{who}.{rng.integers(2)}"
        volumes = who % 7 == 1
        kind, modality = KINDS[rng.integers(6)], str(rng.choice(["CT", "MR"]))
        state = None if isinstance(path, Member) else (10, 1)
        refs = tuple(
            ImageRef(
                path=path, frame=frame, height=int(rng.integers(3, 6)), width=7, source=source,
                channels=int(rng.choice([1, 1, 3, 4])), kind=kind,
                modality=modality, remark=REMARKS[rng.integers(5)],
                patient=patient, series=f"{series}{frame % 2}" if volumes else series,
                position_mm=None if who % 6 == 0 else float(rng.normal()),
                spacing_mm=(0.5, 0.5) if who % 2 else None, window=(0.0, 1.5),
                orientation=(1.0, 0.0, 0.0, 0.0, 0.5, 0.0), format="DICOM", bits=12, state=state,
            )
            for frame in range(rng.integers(1, 5))
        )  # fmt: skip
        found.append(Record(path, source, 400, 5, refs, None, "c" * 20, "a label"))
    return sorted(found, key=lambda record: record.path)


def write(out: Path, folders: list[Path], seed: int = 0) -> Path:
    records = [
        record
        for number, folder in enumerate(folders)
        for record in records_of(folder, seed + number, number)
    ]
    write_table(Table(tuple(folders), records, DEFAULT), out)
    return out


@pytest.fixture
def as_large(monkeypatch):
    """Every index counts as large, and 5 rows are a part."""
    monkeypatch.setattr(large, "ROWS_FROM", 1)
    for module in (large, listed):
        monkeypatch.setattr(module, "LISTED_UP_TO", 3)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two indexes, whose folders are not in the order in which they are named."""
    folder = tmp_path_factory.mktemp("indexes")
    return [
        write(folder / "one.parquet", [folder / "z", folder / "b"]),
        write(folder / "two.parquet", [folder / "m"], 9),
    ]


@pytest.fixture
def two(shared, tmp_path):
    """The same, for a test that changes them."""
    return [Path(shutil.copy(path, tmp_path)) for path in shared]


def both(paths, monkeypatch, **how):
    """An index in memory, and the same one as a large one."""
    with monkeypatch.context() as patched:
        patched.setattr(large, "ROWS_FROM", 10**9)
        small = build_index(paths, verify="headers", **how)
    return small, build_index(paths, verify="headers", **how)


WAYS = [
    {},
    {"take": ["map"]},
    {"take": ["all"]},
    {"where": "bits == 12 and modality == 'CT'"},
    {"where": "height == 4"},
    {"where": "kind == 'localizer' or remark != None"},
    {"where": "patient == 'p5'"},
    {"where": "label == 'a label' and path != 'x'", "take": ["localizer"]},
]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_large_index_has_the_same_images(shared, number, how, as_large, monkeypatch):
    small, found = both(shared[:number], monkeypatch, **how)
    assert isinstance(small.rows, list)
    assert isinstance(found.rows, Rows)
    assert list(found.rows) == small.rows
    assert [ref.state for ref in found.rows] == [ref.state for ref in small.rows]
    assert [found.rows[i] for i in range(-1, len(found))] == [small.rows[-1], *small.rows]
    assert found.rows[3:9:2] == small.rows[3:9:2]
    with pytest.raises(IndexError):
        found.rows[len(found)]
    assert found.left_out == small.left_out
    assert found.without_image == small.without_image
    assert set(found.skipped) <= set(small.skipped)
    assert set(small.notes) <= set(found.notes)
    names = ("height", "width", "spacing_mm", "remark", "channels", "kind")
    assert counts_of(found.rows, *names) == counts_of(small.rows, *names)
    assert found.largest_side == small.largest_side
    assert hash_of_rows(found.rows) == hash_of_rows(small.rows)
    members = [ref.path for ref in found.rows if isinstance(ref.path, Member)]
    assert len({id(member.archive) for member in members}) <= 2 * number


@pytest.mark.parametrize("weights", ["size", "equal", [1, 3, 0.5]])
@pytest.mark.parametrize("how", WAYS[:4])
def test_a_large_index_has_the_same_batches(shared, weights, how, as_large, monkeypatch):
    small, found = both(shared, monkeypatch, **how)
    one, other = strata_of(small.rows, weights), strata_of(found.rows, weights)
    n = len(found)
    for step in (0, 1, 40):
        np.testing.assert_array_equal(
            sample_indices(3, step, 16, n, one), sample_indices(3, step, 16, n, other)
        )


@pytest.fixture
def computed(monkeypatch):
    """Every order is computed."""
    for module in (order, sampler):
        monkeypatch.setattr(module, "COMPUTED_FROM", 1)


@pytest.mark.parametrize("weights", ["size", "equal", [1, 3, 0.5]])
def test_a_computed_order_is_that_of_the_same_images_in_memory(
    shared, weights, as_large, computed, monkeypatch
):
    small, found = both(shared, monkeypatch, take=["all"])
    one, other = order_of(small.rows, weights), order_of(found.rows, weights)
    assert isinstance(other, Layout)
    for step in (0, 1, 40):
        np.testing.assert_array_equal(one.step(3, step, 16), other.step(3, step, 16))


@pytest.mark.parametrize("weights", ["size", "equal"])
@pytest.mark.parametrize("how", WAYS[:4])
def test_a_computed_order_of_some_images_keeps_its_promise(
    shared, weights, how, as_large, computed
):
    rows = build_index(shared, verify="headers", **how).rows
    found, n = order_of(rows, weights), len(rows)
    first, after = found.first_step(1, 16), found.first_step(2, 16)
    epoch = np.array([sample_indices(3, step, 16, n, found) for step in range(first, after)])
    assert epoch.max() < n
    if weights == "size":
        before = [sample_indices(3, step, 16, n, found) for step in range(first)]
        assert np.bincount(np.ravel([*before, *epoch]), minlength=n).min() >= 2
    refs = [[rows[number] for number in step] for step in epoch.tolist()]
    source = weights == "equal"  # the same patient in two sources then counts as two
    keys = [[(ref.patient, source and ref.source) for ref in step] for step in refs]
    total = Counter(key for step in keys for key in step)
    for step in keys:
        for key, count in Counter(step).items():
            assert key[0] is None or count <= ceil(total[key] / len(epoch))


def test_the_order_where_nothing_is_known_is_the_plain_one(tmp_path, as_large):
    refs = [ImageRef(path=tmp_path / f"{i}.png", height=2, width=2) for i in range(9)]
    records = [Record(ref.path, 0, 1, 1, (ref,)) for ref in refs]
    write_table(Table((tmp_path,), records, DEFAULT), tmp_path / "i.parquet")
    index = build_index([tmp_path / "i.parquet"], verify="headers")
    assert strata_of(index.rows) is None
    assert isinstance(index.rows, Rows)
    assert index.rows.all_pictures
    assert not is_plain([*index.rows, replace(refs[0], path=tmp_path / "a.dcm")], None)


def test_all_is_the_same_in_another_process(shared, as_large):
    rows = build_index(shared, verify="headers", where="height > 3").rows
    again = pickle.loads(pickle.dumps(rows))
    assert isinstance(again, Rows)
    assert list(again) == list(rows)
    assert len(pickle.dumps(rows)) < 2000


def test_the_row_file_is_made_once_and_again_for_a_changed_index(two, as_large):
    path = two[0]
    first = build_index([path], verify="headers")
    made = path.with_suffix(".rows")
    assert any(str(made) in note and "was made" in note for note in first.notes)
    before = made.stat().st_mtime_ns, made.read_bytes()
    again = build_index([path], verify="headers")
    assert (made.stat().st_mtime_ns, made.read_bytes()) == before
    assert not any("was made" in note for note in again.notes)
    write(path, [path.parent / "z"], 5)
    changed = build_index([path], verify="headers")
    assert len(changed) != len(first)
    assert any("was made" in note for note in changed.notes)
    assert list(first.rows)  # a run that has the old one open goes on with it


def test_the_command_makes_the_row_file_so_that_no_run_has_to(tmp_path, write_png, as_large):
    for number in range(5):
        write_png(f"data/{number}.png", number)
    said, out = io.StringIO(), tmp_path / "index.parquet"
    make_index([tmp_path / "data"], out, Console(file=said, width=300), reading=DEFAULT)
    assert "index.rows (" in said.getvalue()
    index = build_index([out], verify="headers")
    assert len(index.rows) == 5
    assert isinstance(index.rows, Rows)
    assert not index.notes


@pytest.mark.parametrize("damage", ["cut", "empty", "footer", "version"])
def test_a_damaged_row_file_is_made_again(two, as_large, damage):
    path = two[0]
    wanted = list(build_index([path], verify="headers").rows)
    made = path.with_suffix(".rows")
    data = made.read_bytes()
    broken = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "footer": data[:-200] + b"?" + data[-199:],
        "version": data[:-1] + b"?",
    }[damage]
    made.write_bytes(broken)
    assert list(build_index([path], verify="headers").rows) == wanted


def test_a_row_file_that_is_cut_off_in_use_is_one_line(two, as_large):
    """It is read and not mapped: a mapped one would end the process."""
    rows = build_index([two[0]], verify="headers").rows
    made = two[0].with_suffix(".rows")
    os.truncate(made, 100)
    with pytest.raises(UserError, match=r"one\.rows is cut off or damaged; remove it") as raised:
        rows[len(rows) - 1]
    assert "\n" not in str(raised.value)


def test_a_damaged_block_is_one_line(two, as_large):
    rows = build_index([two[0]], verify="headers").rows
    with two[0].with_suffix(".rows").open("r+b") as file:
        file.seek(60)
        file.write(b"?" * 8)
    with pytest.raises(UserError, match="damaged; remove it"):
        rows[0]


def test_whatever_bytes_of_a_row_file_are_damaged_it_is_one_line_or_made_again(two, as_large):
    made = two[0].with_suffix(".rows")
    wanted = list(build_index([two[0]], verify="headers").rows)
    whole, rng = made.read_bytes(), np.random.default_rng(0)
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        made.write_bytes(damaged)
        found: list[ImageRef] = []
        with contextlib.suppress(UserError):
            rows = build_index([two[0]], verify="headers").rows
            strata_of(rows)
            found = list(rows)
        assert found in ([], wanted)


def test_where_nothing_can_be_written_it_lies_in_the_folder_of_caches(
    two, as_large, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    two[0].with_suffix(".rows").mkdir()  # root may write anywhere else
    rows = build_index([two[0]], verify="headers").rows
    assert isinstance(rows, Rows)
    assert rows.file.path.is_relative_to(tmp_path / "caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(two[0]))
    index = build_index([two[0]], verify="headers")
    assert index.rows == list(rows)
    assert any("no row file can be written" in note for note in index.notes)


def test_folders_in_each_other_are_read_into_memory(tmp_path, as_large):
    out = write(tmp_path / "i.parquet", [tmp_path / "a", tmp_path / "a" / "b"])
    index = build_index([out], verify="headers")
    assert isinstance(index.rows, list)
    assert any("lie in each other" in note for note in index.notes)


def test_a_condition_that_nothing_meets_is_refused_as_ever(two, as_large):
    with pytest.raises(UserError, match="is met by none of"):
        build_index(two, where="height == 99")
    with pytest.raises(UserError, match="did you mean 'modality'"):
        build_index(two, where="modalty == 'CT'")
    with pytest.raises(UserError, match="value of another kind"):
        build_index(two, where="height == 'CT'")


def test_keys_of_two_salts_are_refused_as_ever(two, as_large):
    table = pq.read_table(two[1])
    metadata = table.schema.metadata[b"dino_x.index"].replace(b'"salt": "', b'"salt": "0')
    pq.write_table(table.replace_schema_metadata({b"dino_x.index": metadata}), two[1])
    with pytest.raises(UserError, match="two users or machines"):
        build_index(two)


def test_images_of_a_few_rows_are_a_list(two, as_large, monkeypatch):
    monkeypatch.setattr(large, "LISTED_UP_TO", 1000)
    assert isinstance(build_index(two, verify="headers").rows, list)


def test_too_many_unusable_files_are_refused_as_ever(tmp_path, as_large):
    good = records_of(tmp_path, 0, files=9)
    bad = [Record(tmp_path / f"x{i}.dcm", 0, 1, 1, (), "truncated") for i in range(9)]
    write_table(Table((tmp_path,), [*good, *bad], DEFAULT), tmp_path / "i.parquet")
    with pytest.raises(
        UserError, match=r"9 of 18 image files are unreadable, .*x0\.dcm: truncated"
    ):
        build_index([tmp_path / "i.parquet"], verify="headers")


def test_each_file_is_looked_at_once(two, as_large, monkeypatch):
    small, found = both(two, monkeypatch, where="width == 7 and height > 3")
    assert [ref.path for ref in found.rows.one_of_each_file()] == list(
        dict.fromkeys(ref.path for ref in small.rows)
    )
    assert keys_of_images(found.rows) == set()  # the files are not there


def test_parts_of_an_index_are_joined(two, as_large, monkeypatch):
    """Files whose images lie in two row groups are one file."""
    table = pq.read_table(two[0])
    pq.write_table(table, two[0], row_group_size=7)
    small, found = both(two, monkeypatch)
    assert list(found.rows) == small.rows
    one, other = strata_of(small.rows), strata_of(found.rows)
    np.testing.assert_array_equal(one.rows, other.rows)
    assert pa.types.is_dictionary(table.schema.field("source").type)
