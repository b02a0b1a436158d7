"""A run on archives is the run on the folder that they were made from."""

import threading
from pathlib import Path

import fsspec
import pytest
import torch

from dino_x.data.storage import archives
from dino_x.report.looking import sample_refs
from tests.conftest import tiny_settings
from tests.data.packing import pack_parquet, pack_tar
from tests.equivalence.test_processes import several
from tests.training.runs import killed_after, losses, metrics, pretrain, weights

COMMON = {"train__effective_batch": 8, "train__steps": 4, "checkpoint__every": 2}


@pytest.fixture(scope="module")
def packed(films, tmp_path_factory):
    """The films as they are, in a tar, in Parquet, and both behind addresses."""
    folder = tmp_path_factory.mktemp("packed")
    tar, parquet = pack_tar(films, folder / "x.tar"), pack_parquet(films, folder / "x.parquet")
    store = fsspec.filesystem("memory")
    for file in (tar, parquet):
        store.pipe_file(f"/films/{file.name}", file.read_bytes())
    places = {"folder": films, "tar": tar, "parquet": parquet}
    return places | {kind: f"memory://films/x.{kind.split()[1]}" for kind in REMOTE}


REMOTE = ["remote tar", "remote parquet"]


@pytest.fixture(scope="module")
def on_folder(packed, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    assert pretrain(packed["folder"], out, train__micro_batch=4, **COMMON) == 0
    return out


@pytest.mark.parametrize("kind", ["tar", "parquet", *REMOTE])
def test_training_is_the_same_to_the_bit(packed, on_folder, tmp_path, kind):
    assert pretrain(packed[kind], tmp_path / "run", train__micro_batch=4, **COMMON) == 0
    assert losses(tmp_path / "run") == losses(on_folder)
    mine, its = weights(tmp_path / "run", 4), weights(on_folder, 4)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in its)


def test_neither_micro_batch_nor_threads_nor_caches_matter(packed, on_folder, tmp_path):
    first = {"train__micro_batch": 4, "data__cache_mb": 0, "data__fetches": 3, "data__workers": 5}
    kept = {"data__cache": tmp_path / "cache", "data__index": tmp_path / "index.parquet"}
    for name in ("filled", "used"):
        run = tmp_path / name
        assert pretrain(packed["remote tar"], run, **first, **kept, **COMMON) == 0
        assert losses(run) == losses(on_folder)
    # A store in memory is in this process alone: others are sent what was fetched.
    run = tmp_path / "processes"
    elsewhere = {"train__micro_batch": 4, "data__decode_in": "processes", "data__verify": "headers"}
    assert pretrain(packed["remote tar"], run, **elsewhere, **COMMON) == 0
    assert losses(run) == losses(on_folder)
    small = {"train__micro_batch": 2, "data__row_groups_mb": 0}
    assert pretrain(packed["parquet"], tmp_path / "small", **small, **COMMON) == 0
    for mine, its in zip(losses(tmp_path / "small"), losses(on_folder), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)


def test_a_killed_run_goes_on_where_it_was(packed, on_folder, tmp_path):
    settings = COMMON | {"train__micro_batch": 4}
    killed_after(3, packed["tar"], tmp_path / "run", **settings)
    assert pretrain(packed["tar"], tmp_path / "run", "--resume", **settings) == 0
    assert losses(tmp_path / "run") == losses(on_folder)


def test_a_run_from_an_index_asks_for_no_archive_anew(packed, on_folder, tmp_path, monkeypatch):
    index = tmp_path / "index.parquet"
    settings = COMMON | {"train__micro_batch": 4}
    assert pretrain(packed["tar"], tmp_path / "first", "--index", index, **settings) == 0
    monkeypatch.setattr(
        "dino_x.data.index.headers.members", lambda archive: pytest.fail("looked through")
    )
    assert pretrain(packed["tar"], tmp_path / "second", "--index", index, **settings) == 0
    assert pretrain(index, tmp_path / "third", **settings) == 0
    assert losses(tmp_path / "second") == losses(tmp_path / "third") == losses(on_folder)


def test_one_step_on_parquet_fills_the_cache(packed, on_folder, tmp_path, monkeypatch):
    settings = COMMON | {"train__micro_batch": 4, "online__every": 0, "data__verify": "headers"}
    settings |= {"data__cache": tmp_path / "cache"}
    first = settings | {"train__steps": 1}
    assert pretrain(packed["parquet"], tmp_path / "first", **first) == 0
    monkeypatch.setattr(
        "dino_x.data.loading.loader.decoded", lambda *_: pytest.fail("decoded again")
    )
    assert pretrain(packed["parquet"], tmp_path / "second", **settings) == 0
    assert losses(tmp_path / "second") == losses(on_folder)


@pytest.mark.slow
def test_two_processes_train_on_archives_as_one_does_on_the_folder(packed, tmp_path):
    settings = {"train__micro_batch": 2, "train__precision": "fp64", "data__workers": 1}
    cases = [
        {
            "arguments": [
                *("pretrain", "--data", str(packed[kind]), "--out", str(tmp_path / kind)),
                *tiny_settings(**COMMON, **settings),
            ]
        }
        for kind in ("tar", "parquet")
    ]
    for ranks in several(2, cases, tmp_path / "results"):
        assert [found["status"] for found in ranks] == [0, 0], ranks
    assert pretrain(packed["folder"], tmp_path / "alone", **COMMON, **settings) == 0
    for kind in ("tar", "parquet"):
        for mine, its in zip(losses(tmp_path / kind), losses(tmp_path / "alone"), strict=True):
            assert mine == pytest.approx(its, rel=1e-9)


@pytest.fixture
def leaving(films, tmp_path, monkeypatch):
    """A tar in a store to which something befalls at each read that is due; nothing waits."""
    monkeypatch.setattr(archives, "PAUSES", (0.0, 0.0))
    archives.forget()
    tar = pack_tar(films, tmp_path / "x.tar")
    store = fsspec.filesystem("memory")
    store.pipe_file("/leaving/x.tar", tar.read_bytes())
    read, lock = store.cat_file, threading.Lock()

    def befall(due, lose):
        def cat_file(path, start=None, end=None, **kwargs):
            with lock:
                if due():
                    lose(store)
            return read(path, start=start, end=end, **kwargs)

        monkeypatch.setattr(store, "cat_file", cat_file)
        return "memory://leaving/x.tar"

    return befall


def unreachable(store):
    raise ConnectionError("the network is down")


def test_a_store_that_is_lost_ends_the_run_with_a_line_and_nothing_is_lost(
    leaving, on_folder, tmp_path, capsys, monkeypatch
):
    def trains():
        return len(metrics(tmp_path / "run")) >= 2

    address = leaving(trains, unreachable)
    info = fsspec.filesystem("memory").info

    def no_info(path, **kwargs):
        return unreachable(None) if trains() else info(path, **kwargs)

    monkeypatch.setattr(fsspec.filesystem("memory"), "info", no_info)
    settings = COMMON | {"train__micro_batch": 4, "data__cache_mb": 0, "checkpoint__every": 1}
    assert pretrain(address, tmp_path / "run", **settings) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.count("\n") == 0
    assert "cannot be read any more" in printed
    assert "its store does not answer" in printed
    assert "--resume" in printed
    done = len(metrics(tmp_path / "run"))
    assert 0 < done < 4
    monkeypatch.undo()
    assert pretrain(address, tmp_path / "run", "--resume", **settings) == 0
    assert losses(tmp_path / "run") == losses(on_folder)
    assert (tmp_path / "run" / "skipped.csv").read_text() == "path,reason\n"


def test_a_archive_that_vanishes_ends_the_run_with_a_line(leaving, tmp_path, capsys):
    def remove(store):
        if store.exists("/leaving/x.tar"):
            store.rm_file("/leaving/x.tar")

    address = leaving(lambda: metrics(tmp_path / "run"), remove)
    settings = COMMON | {"train__micro_batch": 4, "data__cache_mb": 0}
    assert pretrain(address, tmp_path / "run", **settings) == 2
    printed = capsys.readouterr().err
    assert "memory://leaving/x.tar is gone" in printed
    assert "--resume" in printed


def test_errors_that_pass_change_nothing(leaving, on_folder, tmp_path):
    failed = set()

    def now_and_then(store):
        name = threading.get_ident()
        if name not in failed:
            failed.add(name)
            raise ConnectionError("try again")
        failed.discard(name)

    settings = COMMON | {"train__micro_batch": 4, "data__cache_mb": 0}
    assert pretrain(leaving(lambda: True, now_and_then), tmp_path / "run", **settings) == 0
    assert losses(tmp_path / "run") == losses(on_folder)


def test_labels_are_found_in_archives(films, tmp_path):
    tar = pack_tar(films, tmp_path / "x.tar")
    table = tmp_path / "labels.csv"
    names = sorted(str(path.relative_to(films)) for path in Path(films).rglob("*.png"))
    table.write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
    for number, labels in enumerate(("folder", table)):
        run = tmp_path / str(number)
        settings = COMMON | {"train__micro_batch": 4}
        assert pretrain(tar, run, "--labels", labels, **settings) == 0
        assert (run / "evaluation.json").is_file()


def test_the_report_looks_into_archives(packed):
    for kind in ("tar", "remote parquet"):
        refs = sample_refs([str(packed[kind])], seed=0)
        assert len({ref.path for ref in refs}) == 40
        assert sample_refs([str(packed[kind])], seed=0) == refs
        assert (
            len(sample_refs([str(packed[kind])], seed=0, count=8)) == 2
        )  # of each of four archives
