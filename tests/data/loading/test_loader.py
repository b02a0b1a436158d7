import os
import threading

import numpy as np
import pytest
import torch

from dino_x.data.canvas.canvas import CanvasForm, make_canvas
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading import loader as loader_module
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.data.loading.sampler import sample_indices
from dino_x.data.readers.registry import read
from dino_x.errors import UserError

ALL_IN_CACHE = 10**9


@pytest.fixture
def index(write_png, tmp_path) -> Index:
    for number in range(12):
        write_png(f"{number:02}.png", number, shape=(10 + number, 14))
    return build_index([tmp_path])


def loader_of(index: Index, *, workers: int = 2, cache_bytes: int = ALL_IN_CACHE) -> Loader:
    return Loader(index, CanvasForm(16, 1), cache_bytes=cache_bytes, workers=workers)


def assert_same(a: Canvases, b: Canvases) -> None:
    assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(a.aspect, b.aspect)


def test_batch_is_float_in_0_1_in_the_order_asked_for(index):
    rows = [7, 0, 7, 3]
    with loader_of(index) as loader:
        batch = loader.batch(np.array(rows))
    assert batch.pixels.dtype == batch.aspect.dtype == torch.float32
    assert batch.pixels.shape == (4, 1, 16, 16)
    for place, row in enumerate(rows):
        canvas = make_canvas(read(index.rows[row]), CanvasForm(16, 1))
        wanted = canvas.pixels.astype(np.float32) / np.float32(65535)
        np.testing.assert_array_equal(batch.pixels[place].numpy(), wanted)
        assert batch.aspect[place].item() == pytest.approx((10 + row) / 14)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("cache_bytes", [0, 3000, ALL_IN_CACHE])
def test_result_does_not_depend_on_threads_or_cache(index, workers, cache_bytes):
    batches = [sample_indices(0, step, 7, len(index)) for step in range(6)]
    with loader_of(index, workers=1, cache_bytes=0) as plain:
        wanted = [plain.batch(batch) for batch in batches]
    with loader_of(index, workers=workers, cache_bytes=cache_bytes) as loader:
        for canvases, want in zip(loader.prefetch(batches), wanted, strict=True):
            assert_same(canvases, want)


@pytest.mark.parametrize(("cache_bytes", "reads"), [(0, 24), (4 * 2 * 16 * 16, 20), (10**9, 12)])
def test_what_is_kept_is_not_decoded_again(index, monkeypatch, cache_bytes, reads):
    count = []
    monkeypatch.setattr(loader_module.registry, "read", lambda ref: count.append(1) or read(ref))
    with loader_of(index, cache_bytes=cache_bytes) as loader:
        for _ in range(2):
            loader.batch(np.arange(12))
    assert len(count) == reads


def test_row_that_repeats_in_a_batch_is_decoded_once(index, monkeypatch):
    count = []
    monkeypatch.setattr(loader_module.registry, "read", lambda ref: count.append(1) or read(ref))
    with loader_of(index, cache_bytes=0) as loader:
        loader.batch(np.array([2, 2, 2]))
    assert len(count) == 1


def test_next_batch_is_read_while_one_is_used(index, monkeypatch):
    second = threading.Event()

    def watched(ref):
        if ref == index.rows[5]:
            second.set()
        return read(ref)

    monkeypatch.setattr(loader_module.registry, "read", watched)
    with loader_of(index) as loader:
        batches = loader.prefetch([np.array([0]), np.array([5]), np.array([6])])
        next(batches)
        assert second.wait(timeout=5)


def test_no_more_than_one_batch_is_read_ahead(index):
    asked = []

    def batches():
        for row in range(6):
            asked.append(row)
            yield np.array([row])

    with loader_of(index) as loader:
        iterator = loader.prefetch(batches())
        next(iterator)
    assert asked == [0, 1]


def test_iteration_may_be_left_early(index):
    with loader_of(index) as loader:
        for _ in loader.prefetch([np.arange(12)] * 5):
            break
        loader.batch(np.array([1]))


@pytest.mark.parametrize("workers", [1, 4])
def test_unreadable_image_is_replaced_by_the_next_and_listed_once(index, workers):
    for row in (3, 4, 11):
        index.rows[row].path.write_bytes(b"not an image")
    with loader_of(index, workers=workers, cache_bytes=0) as loader:
        wanted = loader.batch(np.array([5, 5, 0, 6]))
        for _ in range(2):
            assert_same(loader.batch(np.array([3, 4, 11, 6])), wanted)
    assert [skip.path.name for skip in loader.skipped] == ["03.png", "04.png", "11.png"]
    assert all(
        skip.reason.startswith("has changed since it was indexed") for skip in loader.skipped
    )


@pytest.mark.parametrize("change", ["size", "time", "nothing"])
def test_a_file_that_changed_since_it_was_indexed_is_noticed(index, change):
    path = index.rows[3].path
    before = path.stat()
    if change == "size":
        with path.open("ab") as file:
            file.write(bytes(1))
    ns = before.st_mtime_ns + 10**9 * (change == "time")
    os.utime(path, ns=(before.st_atime_ns, ns))
    with loader_of(index, workers=1, cache_bytes=0) as loader:
        loader.batch(np.array([3]))
    assert [skip.path.name for skip in loader.skipped] == ["03.png"] * (change != "nothing")


def many(write_png, tmp_path, number: int) -> Index:
    path = write_png("one.png")
    index = build_index([path])
    rows = []
    for row in range(number):
        link = tmp_path / f"{row:03}.png"
        link.symlink_to(path)
        rows.append(type(index.rows[0])(path=link, height=12, width=10))
    return Index(rows)


def damage(index: Index, number: int) -> None:
    for row in range(number):
        index.rows[row * 2].path.unlink()


@pytest.mark.parametrize(
    ("images", "broken", "error"),
    [(20, 9, False), (20, 10, True), (100, 10, False), (100, 11, True)],
)
def test_more_than_1_in_10_and_at_least_10_unreadable_is_an_error(
    write_png, tmp_path, images, broken, error
):
    index = many(write_png, tmp_path, images)
    damage(index, broken)
    with loader_of(index) as loader:
        if not error:
            loader.batch(np.arange(images))
            assert len(loader.skipped) == broken
            return
        with pytest.raises(UserError, match=f"{broken} of the {images} .*000.png: cannot be op"):
            loader.batch(np.arange(images))


def test_nothing_readable_is_an_error_and_no_endless_search(write_png, tmp_path, monkeypatch):
    monkeypatch.setattr(loader_module, "_LONGEST_REPLACEMENT", 30)
    index = many(write_png, tmp_path, 50)
    (tmp_path / "one.png").unlink()
    with loader_of(index) as loader, pytest.raises(UserError, match="30 images one after another"):
        loader.batch(np.array([7]))


def test_colour_has_three_channels(write_png, tmp_path):
    write_png("1.png", shape=(8, 8, 3))
    index = build_index([tmp_path])
    with Loader(index, CanvasForm(8, 3), cache_bytes=0, workers=1) as loader:
        wanted = read(index.rows[0]).pixels / np.float32(255)
        np.testing.assert_allclose(loader.batch(np.array([0])).pixels[0], wanted, atol=1e-6)
