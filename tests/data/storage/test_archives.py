"""Bytes of archives: what is tried again, what is an image's own fault, what ends a run."""

import errno
import http.server
import io
import os
import re
import threading

import fsspec
import numpy as np
import pytest

from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.image import Unreadable
from dino_x.data.index.index import build_index
from dino_x.data.loading.loader import Loader
from dino_x.data.readers import registry
from dino_x.data.storage import archives, row_groups
from dino_x.data.storage.archives import Archive, Span, read_range, reader_of, state_of
from dino_x.errors import UserError
from tests.data.packing import pack_parquet, pack_tar

FORM = CanvasForm(side=16, channels=1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(archives, "PAUSES", (0.0, 0.0, 0.0))
    archives.forget()


@pytest.fixture
def folder(tmp_path, write_png):
    for number in range(12):
        write_png(f"f/{number:02}.png", number)
    return tmp_path / "f"


@pytest.fixture
def stored(folder, tmp_path):
    """A tar in the file system in memory."""
    data = pack_tar(folder, tmp_path / "x.tar").read_bytes()
    fsspec.filesystem("memory").pipe_file("/store/x.tar", data)
    return state_of(build_index(["memory://store/x.tar"]).rows[0].path.archive.path)


@pytest.fixture
def failing(monkeypatch):
    """Makes the file system in memory raise these errors at the next reads; counts reads."""
    store = fsspec.filesystem("memory")
    read, count = store.cat_file, [0]

    def fail(*errors):
        left = list(errors)

        def cat_file(path, **kwargs):
            count[0] += 1
            if left:
                error = left.pop(0)
                if isinstance(error, BaseException):
                    raise error
                return error
            return read(path, **kwargs)

        monkeypatch.setattr(store, "cat_file", cat_file)
        return count

    return fail


def content(archive):
    return fsspec.filesystem("memory").cat_file("/store/x.tar")


@pytest.mark.parametrize(
    "error", [ConnectionError("reset"), TimeoutError(), OSError(errno.EIO, "I/O"), b"short"]
)
def test_errors_that_pass_are_tried_again(stored, failing, error):
    expected = content(stored)[100:200]
    count = failing(error, error, error)
    assert read_range(stored, 100, 100) == expected
    assert count == [4]


def test_an_error_that_stays_is_the_images_own_while_the_store_answers(stored, failing):
    count = failing(*[TimeoutError("secret in a message")] * 99)
    with pytest.raises(Unreadable, match="^cannot be read: TimeoutError$"):
        read_range(stored, 0, 10)
    assert count == [4]


def test_a_store_that_does_not_answer_is_no_image(stored, failing, monkeypatch):
    failing(*[TimeoutError()] * 99)
    archives._confirmed(stored)
    monkeypatch.setattr(archives, "state_of", lambda path: (_ for _ in ()).throw(TimeoutError()))
    with pytest.raises(UserError, match=r"does not answer, 4 tries.*--resume"):
        read_range(stored, 0, 10)


def test_permissions_are_not_tried_again(stored, failing):
    count = failing(PermissionError(errno.EACCES, "Access Denied"))
    with pytest.raises(UserError, match="may not be read.*credentials"):
        read_range(stored, 0, 10)
    assert count == [1]


def test_an_object_that_has_changed_is_noticed_before_it_is_read(stored):
    fsspec.filesystem("memory").pipe_file("/store/x.tar", content(stored) + b"\0" * 512)
    archives.forget()
    with pytest.raises(UserError, match="has changed since its images were indexed"):
        read_range(stored, 0, 10)


@pytest.mark.parametrize("change", ["longer", "touched", "gone", "cut while it is read"])
def test_a_file_that_has_changed_is_noticed(folder, tmp_path, change):
    tar = pack_tar(folder, tmp_path / "x.tar")
    rows = build_index([tar]).rows
    if change != "cut while it is read":
        archives.forget()
    if change == "longer":
        tar.write_bytes(tar.read_bytes() + b"\0" * 512)
    elif change == "touched":
        os.utime(tar, ns=(0, 0))
    elif change == "gone":
        tar.unlink()
    else:
        os.truncate(tar, 700)
    with pytest.raises(UserError, match="is gone" if change == "gone" else "has changed"):
        registry.read(rows[-1])


@pytest.mark.parametrize("after", range(4))
def test_what_a_decoder_makes_of_a_lost_archive_is_not_believed(
    folder, tmp_path, monkeypatch, after
):
    """A large member is read while it is decoded, by libraries that take any error for damage."""
    rows = build_index([pack_tar(folder, tmp_path / "x.tar")]).rows
    monkeypatch.setattr("dino_x.data.storage.member.WHOLE_UP_TO", 1)
    monkeypatch.setattr("dino_x.data.storage.member.opened_span", small_spans)
    read, reads = archives._read_local, []

    def lost(archive, start, length):
        reads.append(start)
        if len(reads) > after:
            raise FileNotFoundError
        return read(archive, start, length)

    monkeypatch.setattr(archives, "_read_local", lost)
    with pytest.raises(UserError, match="is gone"):
        registry.read(rows[1])


def small_spans(read, start, length):
    return archives.opened_span(read, start, length, 64)


def test_an_error_of_before_is_not_taken_for_that_of_another_image(folder, tmp_path, write_png):
    rows = build_index([pack_tar(folder, tmp_path / "x.tar")]).rows
    (tmp_path / "x.tar").unlink()
    archives.forget()
    with pytest.raises(UserError):
        read_range(rows[0].path.archive, 0, 1)
    broken = write_png("broken.png")
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(Unreadable):
        registry.read(rows[0].__class__(path=broken, height=1, width=1))


def test_a_loader_replaces_and_lists_an_image_that_stays_unreadable(stored, failing):
    index = build_index(["memory://store/x.tar"], verify="headers")
    failing(*[TimeoutError()] * 4)
    with Loader(index, FORM, cache_bytes=0, workers=1, fetches=1) as loader:
        loader.batch(np.array([3, 7]))
        assert [skip.path.name for skip in loader.skipped] == ["03.png"]


def test_a_loader_ends_with_the_lost_store(stored, monkeypatch):
    index = build_index(["memory://store/x.tar"], verify="headers")
    fsspec.filesystem("memory").rm("/store/x.tar")
    with Loader(index, FORM, cache_bytes=0, workers=2) as loader:
        with pytest.raises(UserError, match="memory://store/x.tar is gone"):
            loader.batch(np.arange(4))
        assert loader.skipped == []


def test_images_of_a_store_are_fetched_ahead_and_once(stored, monkeypatch):
    index = build_index(["memory://store/x.tar"], verify="headers")
    store = fsspec.filesystem("memory")
    read, asked = store.cat_file, []

    def cat_file(path, start=None, end=None, **kwargs):
        asked.append(start)
        return read(path, start=start, end=end, **kwargs)

    monkeypatch.setattr(store, "cat_file", cat_file)
    with Loader(index, FORM, cache_bytes=0, workers=1, fetches=4) as loader:
        batches = loader.prefetch([np.array([i, i + 1]) for i in range(0, 12, 2)])
        next(batches)
        loader._fetch_pool.submit(lambda: None).result()  # those before it have begun
        begun = len(asked)
        list(batches)
    assert begun >= 8  # twice the fetches at a time, though one batch of two was asked for
    assert sorted(asked) == sorted(ref.path.offset for ref in index.rows)


def test_what_is_kept_is_not_fetched(stored, monkeypatch):
    index = build_index(["memory://store/x.tar"], verify="headers")
    with Loader(index, FORM, cache_bytes=10**6, workers=1) as loader:
        expected = loader.batch(np.arange(12)).pixels
        reads = []
        monkeypatch.setattr(
            fsspec.filesystem("memory"), "cat_file", lambda *_, **__: reads.append(1)
        )
        (again,) = loader.prefetch([np.arange(12)])
    assert not reads
    np.testing.assert_array_equal(again.pixels, expected)


# Row groups


def test_a_row_group_is_read_once_for_images_that_come_together(folder, tmp_path, monkeypatch):
    index = build_index([pack_parquet(folder, tmp_path / "x.parquet", rows=4)], verify="headers")
    read, count = row_groups.read_group, []
    monkeypatch.setattr(row_groups, "read_group", lambda s, g: count.append(g) or read(s, g))
    row_groups.groups.__init__(2**20)
    for ref in index.rows:
        registry.read(ref)
    assert count == [0, 1, 2]
    row_groups.groups.__init__(0)
    for row in (0, 5, 1, 6):
        registry.read(index.rows[row])
    assert count == [0, 1, 2, 0, 1, 0, 1]
    row_groups.groups.__init__(2**29)


def test_a_row_group_is_one_request(tmp_path, write_png, failing):
    for number in range(8):
        write_png(f"large/{number}.png", number, (150, 150))
    parquet = pack_parquet(tmp_path / "large", tmp_path / "x.parquet", rows=4)
    fsspec.filesystem("memory").pipe_file("/store/x.parquet", parquet.read_bytes())
    index = build_index(["memory://store/x.parquet"], verify="headers")
    row_groups.groups.__init__(2**20)
    count = failing()
    for ref in index.rows[:4]:
        registry.read(ref)
    assert count == [1]


def test_the_cache_is_filled_in_the_order_of_row_groups(folder, tmp_path, monkeypatch):
    parquet = pack_parquet(folder, tmp_path / "x.parquet", rows=3)
    index = build_index([parquet], verify="headers")
    index.rows = [index.rows[i] for i in np.random.default_rng(0).permutation(12)]
    read, count = row_groups.read_group, []
    monkeypatch.setattr(row_groups, "read_group", lambda s, g: count.append(g) or read(s, g))
    row_groups.groups.__init__(0)
    keys = keys_of(index.rows, FORM)
    store = CanvasStore(tmp_path / "cache", keys, FORM, limit_bytes=10**9)
    told = []
    with Loader(index, FORM, cache_bytes=0, workers=1, store=store) as loader:
        loader.fill(lambda done, total: told.append((done, total)))
        assert (count, told, len(store)) == ([0, 1, 2, 3], [(12, 12)], 12)
        kept = loader.batch(np.arange(12)).pixels
    assert count == [0, 1, 2, 3]
    with Loader(build_index([folder]), FORM, cache_bytes=0, workers=1) as plain:
        expected = plain.batch(np.array([int(ref.path.stem) for ref in index.rows])).pixels
    np.testing.assert_array_equal(kept, expected)
    row_groups.groups.__init__(2**29)


def test_filling_stops_where_the_cache_is_full(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dino_x.data.loading.loader._FILLED_AT_A_TIME", 1)
    index = build_index([pack_parquet(folder, tmp_path / "x.parquet", rows=3)])
    store = CanvasStore(tmp_path / "cache", keys_of(index.rows, FORM), FORM, limit_bytes=2000)
    with Loader(index, FORM, cache_bytes=0, workers=1, store=store) as loader:
        told = []
        loader.fill(lambda *done: told.append(done))
        assert 0 < len(store) < 12
        assert len(told) == len(store) + 1  # the one that found it full


# Over HTTP, with and without ranges


class Ranges(http.server.BaseHTTPRequestHandler):
    """Serves one file, by ranges if the server is told to."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        data, status = self.server.data, 200
        if self.path != "/x.tar":
            self.send_error(404)
            return
        span = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if span and self.server.ranges:
            data, status = data[int(span[1]) : int(span[2]) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(folder, tmp_path):
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    server.data, server.ranges, server.sent = b"", True, 0
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_tar_on_a_web_server_is_read_by_ranges(folder, tmp_path, server):
    server.data = pack_tar(folder, tmp_path / "x.tar").read_bytes()
    index = build_index([f"{server.address}/x.tar"])
    plain = build_index([folder])
    for mine, its in zip(index.rows, plain.rows, strict=True):
        np.testing.assert_array_equal(registry.read(mine).pixels, registry.read(its).pixels)
    server.sent = 0
    registry.read(index.rows[5])
    assert server.sent == index.rows[5].path.length


def test_a_web_server_without_ranges_is_refused(folder, tmp_path, server):
    server.data = pack_tar(folder, tmp_path / "x.tar").read_bytes()
    index = build_index([f"{server.address}/x.tar"], verify="headers")
    server.ranges = False
    with pytest.raises(UserError, match="whole files only"):
        registry.read(index.rows[5])


def test_what_is_not_on_a_web_server(server):
    with pytest.raises(UserError, match="does not exist"):
        build_index([f"{server.address}/y.tar"])


# Parts of files


def test_a_span_is_a_file(tmp_path):
    data = bytes(range(256)) * 8
    (tmp_path / "x.tar").write_bytes(data)
    archive = state_of(tmp_path / "x.tar")
    span = io.BufferedReader(Span(lambda s, n: read_range(archive, s, n), 100, 500), 64)
    plain = io.BytesIO(data[100:600])
    for offset, whence, count in ((0, 0, 10), (-20, 2, 50), (5, 1, 3), (600, 0, 4), (90, 0, 200)):
        assert span.seek(offset, whence) == plain.seek(offset, whence)
        assert span.read(count) == plain.read(count)
    with pytest.raises(OSError, match="before the beginning"):
        Span(read_range, 0, 9).seek(-1)


def test_blocks_are_the_bytes_of_the_archive(stored, monkeypatch):
    monkeypatch.setattr(archives, "BLOCK_BYTES", 1000)
    read_range, asked = archives.read_range, []
    monkeypatch.setattr(
        archives, "read_range", lambda of, start, n: asked.append(start) or read_range(of, start, n)
    )
    data, read = content(stored), reader_of(stored)
    for start, length in ((0, 10), (990, 20), (0, 5000), (len(data) - 5, 5), (len(data) - 5, 50)):
        assert read(start, length) == data[start : start + length]
    assert read(len(data) + 7, 3) == b""
    last = len(data) // 1000 * 1000
    assert asked == [0, 1000, 2000, 3000, 4000, last], "the last four are kept"
    read(0, 10)
    assert asked[-1] == 0, "no more than that is kept"


def test_archives_are_told_apart_by_their_state(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    assert state_of(tmp_path / "x") != Archive(tmp_path / "x", 1, 0)
