import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_x.data.canvas import cache_files
from dino_x.data.canvas.canvas import Canvas, CanvasForm
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading import loader as loader_module
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.data.loading.sampler import sample_indices
from dino_x.data.readers.registry import read
from dino_x.errors import UserError

FORM = CanvasForm(16, 1)
RECORD = 2 * 16 * 16


@pytest.fixture
def index(write_png, tmp_path) -> Index:
    for number in range(12):
        write_png(f"images/{number:02}.png", number, shape=(10 + number, 14))
    return build_index([tmp_path / "images"])


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[ImageRef]:
    """Every image that a loader decodes from now on."""
    seen: list[ImageRef] = []
    monkeypatch.setattr(loader_module.registry, "read", lambda ref: seen.append(ref) or read(ref))
    return seen


def store_of(index: Index, folder: Path, limit_bytes=10**9, form=FORM, say=lambda _: None):
    keys = keys_of(index.rows, form)
    return CanvasStore(folder, keys, form, limit_bytes=limit_bytes, say=say)


def loader_of(index: Index, folder: Path | None, cache_bytes=0, form=FORM, **more) -> Loader:
    store = None if folder is None else store_of(index, folder, form=form, **more)
    return Loader(index, form, cache_bytes=cache_bytes, workers=2, store=store)


def epochs(index: Index, count: int) -> list[np.ndarray]:
    steps = -(-count * len(index) // 5)
    return [sample_indices(0, step, 5, len(index)) for step in range(steps)]


def assert_same(found: Canvases, wanted: Canvases) -> None:
    assert torch.equal(found.pixels, wanted.pixels)
    assert torch.equal(found.aspect, wanted.aspect)


def assert_as_without_cache(index: Index, folder: Path, form=FORM, **more) -> None:
    plain = loader_of(index, None, form=form)
    with plain, loader_of(index, folder, form=form, **more) as cached:
        for batch in epochs(index, 3):
            assert_same(cached.batch(batch), plain.batch(batch))


def test_each_image_is_decoded_once_for_all_epochs_and_runs(index, folder, decoded):
    for run in range(2):
        with loader_of(index, folder) as loader:
            assert len(loader.store) == (0 if run == 0 else 12)
            for batch in epochs(index, 3):
                loader.batch(batch)
    assert len(decoded) == 12


def test_batches_are_the_same_to_the_bit_with_and_without_cache(index, folder):
    for _ in range(2):  # made, then found
        assert_as_without_cache(index, folder)


def test_what_is_kept_beside_the_pixels_comes_back(index, folder, rng):
    pixels = rng.integers(0, 65536, (2, 1, 16, 16)).astype(np.uint16)
    kept = [Canvas(pixels[0], 1.3, (20.5, 0.25), True), Canvas(pixels[1], 0.1)]
    with store_of(index, folder) as store:
        for row, canvas in enumerate(kept):
            assert store.put(row, canvas)
    with store_of(index, folder) as store:
        for row, canvas in enumerate(kept):
            found = store.get(row)
            np.testing.assert_array_equal(found.pixels, canvas.pixels)
            assert (found.aspect, found.size_mm, found.hounsfield) == (
                canvas.aspect, canvas.size_mm, canvas.hounsfield,
            )  # fmt: skip
        assert store.get(2) is None


def test_unreadable_images_are_replaced_as_without_cache(index, folder):
    for row in (3, 4, 11):
        index.rows[row].path.write_bytes(b"not an image")
    with loader_of(index, None) as plain:
        for batch in epochs(index, 2):
            plain.batch(batch)
        for _ in range(2):
            with loader_of(index, folder) as cached:
                for batch in epochs(index, 2):
                    assert_same(cached.batch(batch), plain.batch(batch))
                assert cached.skipped == plain.skipped


def test_a_changed_file_is_decoded_again(index, folder, decoded, write_png):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    changed = index.rows[5].path
    write_png(f"images/{changed.name}", 99, shape=(15, 14))
    decoded.clear()
    with loader_of(index, folder) as loader:
        batch = loader.batch(np.arange(12))
    assert [ref.path for ref in decoded] == [changed]
    assert_same(batch, Loader(index, FORM, cache_bytes=0, workers=1).batch(np.arange(12)))


def test_a_file_with_the_same_size_and_another_time_is_decoded_again(index, folder, decoded):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    decoded.clear()
    path = index.rows[2].path
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    assert [ref.path for ref in decoded] == [path]


@pytest.mark.parametrize(
    "form",
    [CanvasForm(32, 1), CanvasForm(16, 3), CanvasForm(16, 1, spacing_mm=2.0)],
    ids=["side", "channels", "spacing"],
)
def test_canvases_made_otherwise_are_kept_apart(index, folder, form):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    with loader_of(index, folder, form=form) as loader:
        assert len(loader.store) == 0
        wanted = Loader(index, form, cache_bytes=0, workers=1).batch(np.arange(12))
        assert_same(loader.batch(np.arange(12)), wanted)
    with loader_of(index, folder) as loader:
        assert len(loader.store) == 12


def test_no_path_is_in_the_cache(index, folder):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    for file in folder.iterdir():
        assert b".png" not in file.read_bytes()
        assert "png" not in file.name


@pytest.mark.parametrize("cut", [1, RECORD // 2, RECORD + 1])
@pytest.mark.parametrize("suffix", [".pixels", ".entries"])
def test_a_half_written_cache_file_gives_what_is_whole_and_no_more(index, folder, suffix, cut):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    (file,) = folder.glob(f"*{suffix}")
    os.truncate(file, max(0, file.stat().st_size - cut))
    with loader_of(index, folder) as loader:
        assert len(loader.store) < 12
    assert_as_without_cache(index, folder)


@pytest.mark.parametrize("suffix", [".pixels", ".entries"])
def test_a_damaged_byte_is_noticed_wherever_it_is(index, folder, suffix):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(12))
    (file,) = folder.glob(f"*{suffix}")
    whole = file.read_bytes()
    for place in range(0, len(whole), 211 if suffix == ".pixels" else 23):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with store_of(index, folder) as store:
            found = [store.get(row) for row in range(12)]
        assert sum(canvas is None for canvas in found) in (1, 12)  # 12: the header
    assert_as_without_cache(index, folder)


def test_files_that_are_no_cache_files_are_left_alone_and_ignored(index, folder):
    folder.mkdir()
    (folder / "canvases-1.entries").write_bytes(b"")
    (folder / "canvases-2.entries").write_bytes(os.urandom(300))
    (folder / "canvases-2.pixels").write_bytes(os.urandom(3000))
    (folder / "mine.txt").write_text("mine")
    assert_as_without_cache(index, folder)
    assert (folder / "mine.txt").read_text() == "mine"


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.index.index import build_index
from dino_x.data.loading.loader import Loader
from dino_x.data.canvas.store import CanvasStore, keys_of
index = build_index([Path(sys.argv[1])])
form = CanvasForm(16, 1)
store = CanvasStore(Path(sys.argv[2]), keys_of(index.rows, form), form, limit_bytes=10**9)
loader = Loader(index, form, cache_bytes=0, workers=1, store=store)
loader.batch(np.arange(7))
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_what_it_finished(index, folder, decoded):
    images = index.rows[0].path.parent
    killed = subprocess.run([sys.executable, "-c", KILLED, str(images), str(folder)], check=False)
    assert killed.returncode == -9
    with loader_of(index, folder) as loader:
        assert len(loader.store) == 7
        loader.batch(np.arange(12))
    assert len(decoded) == 5
    assert_as_without_cache(index, folder)


def test_several_that_build_one_cache_at_once(index, folder):
    """Two stores as two processes have them: each writes its own cache files, both are found."""
    first, second = loader_of(index, folder), loader_of(index, folder)
    with first, second, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(loader.batch, np.arange(12)) for loader in (first, second)]
        assert_same(*(future.result() for future in both))
    with loader_of(index, folder) as third:
        assert len(third.store) == 12
    assert_as_without_cache(index, folder)


def test_what_another_process_is_writing_can_be_used(index, folder, decoded):
    with loader_of(index, folder) as writer:
        writer.batch(np.arange(6))
        with loader_of(index, folder) as reader:
            assert len(reader.store) == 6
            reader.batch(np.arange(6))
        writer.batch(np.arange(12))
    assert len(decoded) == 12


def test_full_cache_keeps_what_it_has_and_says_so_once(index, folder, monkeypatch):
    monkeypatch.setattr(cache_files, "CACHE_FILE_BYTES", 4 * RECORD)
    messages: list[str] = []
    limit = 24 + 52 * 6 + 6 * RECORD
    assert_as_without_cache(index, folder, limit_bytes=limit, say=messages.append)
    assert len(messages) == 1
    assert "is full" in messages[0]
    with store_of(index, folder) as store:
        assert 1 <= len(store) <= 6


def test_room_is_made_by_removing_what_was_unused_for_longest(index, folder, monkeypatch):
    monkeypatch.setattr(cache_files, "CACHE_FILE_BYTES", 4 * RECORD)
    size = {}
    for age, side in ((3, 8), (2, 16), (1, 24)):
        with loader_of(index, folder, form=CanvasForm(side, 1)) as loader:
            loader.batch(np.arange(12))
        for file in set(folder.glob("*.entries")) - set(size):
            size[file] = side
            os.utime(file, ns=(0, 10**18 - age * 10**9))
    total = sum(file.stat().st_size for file in folder.glob("canvases-*"))
    with loader_of(index, folder, form=CanvasForm(8, 3), limit_bytes=total + 100) as loader:
        left = [size[file] for file in folder.glob("*.entries")]
        assert left.count(24) == 12, "a canvas of 24 fills a cache file of its own"
        assert 0 < left.count(16) < 3
        assert 8 not in left
        loader.batch(np.arange(12))
        assert len(loader.store) == 12


def test_nothing_is_removed_while_another_run_uses_the_cache(index, folder):
    with loader_of(index, folder) as user:
        user.batch(np.arange(12))
        with loader_of(index, folder, form=CanvasForm(32, 1), limit_bytes=1):
            assert len(list(folder.glob("*.pixels"))) == 1
        assert_same(user.batch(np.arange(12)), user.batch(np.arange(12)))
    with loader_of(index, folder, form=CanvasForm(32, 1), limit_bytes=1):
        assert not list(folder.glob("*.pixels"))


def test_full_disk_costs_the_cache_and_not_the_run(index, folder, monkeypatch):
    messages: list[str] = []
    write, calls = os.pwrite, []

    def full(file, data, offset):
        calls.append(1)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert_as_without_cache(index, folder, say=messages.append)
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    with store_of(index, folder) as store:
        assert len(store) == 4


def test_a_disk_that_is_really_full(index, folder, small_disk):
    """On a file system of 64 KB, where the tests may mount one."""
    small_disk(folder, 64)
    messages: list[str] = []
    form = CanvasForm(80, 1)  # 12.8 KB each: four fit
    assert_as_without_cache(index, folder, form=form, say=messages.append)
    assert len(messages) == 1
    assert "No space left on device" in messages[0]
    with store_of(index, folder, form=form) as store:
        assert 3 <= len(store) <= 4


@pytest.mark.parametrize("when", ["ftruncate", "open"])
def test_disk_that_fails_when_a_cache_file_begins(index, folder, monkeypatch, when):
    messages: list[str] = []
    real = getattr(os, when)

    def fails(path, *more, **named):
        if when == "ftruncate" or str(path).endswith(".pixels"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(path, *more, **named)

    monkeypatch.setattr(os, when, fails)
    assert_as_without_cache(index, folder, say=messages.append)
    assert len(messages) == 1
    assert not list(folder.glob("canvases-*"))


def test_folder_that_cannot_be_written_is_read(index, folder, decoded, monkeypatch):
    with loader_of(index, folder) as loader:
        loader.batch(np.arange(6))
    real = os.open

    def refuses(path, flags, *more):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refuses)
    messages: list[str] = []
    with loader_of(index, folder, say=messages.append) as loader:
        for _ in range(2):
            loader.batch(np.arange(12))
    assert len(decoded) == 6 + 2 * 6
    assert len(messages) == 1
    assert "only read" in messages[0]


def test_a_file_as_cache_is_refused(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use .*file as cache"):
        store_of(index, tmp_path / "file")


def test_a_file_that_is_gone_has_no_key(index):
    index.rows[0].path.unlink()
    keys = keys_of(index.rows, FORM)
    assert keys[0] is None
    assert len(set(keys)) == 12


def test_frames_of_one_file_have_keys_of_their_own(index):
    path = index.rows[0].path
    rows = [ImageRef(path=path, frame=frame, height=4, width=4) for frame in range(5)]
    assert len(set(keys_of(rows, FORM))) == 5


def test_neighbours_are_part_of_the_key(index):
    form = CanvasForm(16, 3, slices=3)
    one = keys_of(index.rows, form, np.array([[0, 1, 2]] * 12))
    other = keys_of(index.rows, form, np.array([[0, 1, 3]] * 12))
    assert one[0] != other[0]


def test_what_memory_holds_while_the_disk_is_full(index, folder, decoded):
    with loader_of(index, folder, limit_bytes=1, cache_bytes=10**6) as loader:
        for _ in range(3):
            loader.batch(np.arange(12))
    assert len(decoded) == 12


@pytest.mark.parametrize("left", [0, 1, RECORD * 5 + 3])
def test_a_cache_file_that_is_cut_off_in_use_costs_time_alone(index, folder, decoded, left):
    """Mapped memory would end the process with a bus error."""
    with loader_of(index, folder) as loader:
        before = loader.batch(np.arange(12))
    with loader_of(index, folder) as loader, loader_of(index, None) as plain:
        assert_same(loader.batch(np.arange(12)), before)
        assert_same(loader.batch(np.arange(12)), before)  # all are checked: copied without a look
        (pixels,) = folder.glob("*.pixels")
        os.truncate(pixels, left)
        decoded.clear()
        assert_same(loader.batch(np.arange(12)), plain.batch(np.arange(12)))
    assert len(decoded) >= 12 + 12 - left // RECORD - 1
    assert loader.skipped == []
