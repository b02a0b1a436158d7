"""Canvases on disk: an image is decoded once, for all runs that prepare it in the same way.

    DIR/lock             held, shared, by every run that uses the cache
    DIR/canvases-ID.*    shards, see shards.py

- A process adds to shards of its own only, so that any number may build one cache at once. At
  the worst an image is in it twice.
- What a killed process or a full disk leaves half-written is no entry, or one that is noticed by
  its checksum when it is first used: the image is then decoded again.
- Keys are hashes of the file's path, size and time and of how the canvas was made. A changed file
  has another key. No name of a file is in the cache.
- The folder is bounded. When it is full nothing more is added: as every epoch visits every image
  once, what is there hits in proportion to its size. At the start of a run that needs room, whole
  shards that it has no use for are removed, those unused for longest first, unless another run is
  using the cache at that moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from dino_x.data.canvas.cache_files import (
    ENTRY_BYTES,
    CacheFileWriter,
    checksum_of,
    read_shard,
    size_on_disk,
)
from dino_x.data.canvas.canvas import Canvas, CanvasForm, to_unit
from dino_x.data.image import ImageRef
from dino_x.data.storage.member import version_of
from dino_x.errors import UserError

# Raise it when readers or make_canvas give other values for the same file: old entries then no
# longer count, and are removed when room is needed.
PREPARATION = 1


def keys_of(
    rows: Sequence[ImageRef], form: CanvasForm, neighbours: np.ndarray | None = None
) -> list[bytes | None]:
    """What each image's canvas is filed under: 16 bytes; None for a file that is not there.

    Args:
        rows: the images.
        form: of the canvases.
        neighbours: for 2.5D the three rows that make up each image, int [n, 3].
    """
    made = (
        f"{PREPARATION}|{form.side}|{form.channels}|{form.slices}|{form.spacing_mm}"
        f"|{form.windows.model_dump_json()}"
    ).encode()
    last: Path | None = None  # the images of a file come one after another
    file: bytes | None = None
    sources: list[bytes | None] = []
    for row in rows:
        if row.path is not last:
            version, last = version_of(row.path), row.path
            file = None if version is None else os.fsencode(version)
        what = (
            f"|{row.frame}|{row.height}|{row.width}|{row.spacing_mm}|{row.axis}|{row.modality}|"
        ).encode()
        sources.append(None if file is None else file + what)
    if neighbours is not None:
        triples = ([sources[i] for i in triple] for triple in neighbours)
        sources = [None if None in t else b"".join(t) for t in triples]  # type: ignore[arg-type]
    return [
        None if source is None else hashlib.blake2b(source + made, digest_size=16).digest()
        for source in sources
    ]


class CanvasStore:
    """The canvases of a run's images, in a folder that other runs may share.

    Args:
        folder: made if it is missing.
        keys: of the run's images, see `keys_of`.
        form: of their canvases.
        limit_bytes: what the folder may hold. Several runs that add at once see each other only
            when they begin a shard, and may pass it by a shard each.
        say: told, once each, why canvases are no longer kept.

    Raises: UserError if the folder cannot be made or read.
    """

    def __init__(
        self,
        folder: Path,
        keys: Sequence[bytes | None],
        form: CanvasForm,
        *,
        limit_bytes: int,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.folder, self.limit_bytes, self.say = folder, limit_bytes, say
        self._shape = (form.channels, form.side, form.side)
        self._record_bytes = 2 * form.channels * form.side * form.side + ENTRY_BYTES
        self._keys = keys
        self._shards: list[np.ndarray] = []  # mapped, uint16 [records, C, S, S]
        n = len(keys)
        self._shard = np.full(n, -1, dtype=np.int32)  # of each image; -1: not in the cache
        self._record = np.zeros(n, dtype=np.int64)
        self._checksum = np.zeros(n, dtype=np.uint32)
        self._checked = np.zeros(n, dtype=bool)
        self.aspect = np.zeros(n, dtype=np.float64)
        self.size_mm = np.full((n, 2), np.nan)
        self.hounsfield = np.zeros(n, dtype=bool)
        self._writing = threading.Lock()
        self._own: CacheFileWriter | None = None
        self._bytes = 0
        self.adding = True
        self._lock_file: int | None = None
        self._open()

    def __len__(self) -> int:
        """How many of the run's images are in the cache."""
        return int((self._shard >= 0).sum())

    def ready(self, rows: np.ndarray) -> np.ndarray:
        """Which images can be copied at once: in the cache and found to be whole, bool [n]."""
        return self._checked[rows]

    def copy_to(self, row: int, out: np.ndarray) -> None:
        """Pixels of an image that is `ready` as float32 in [0, 1]. Takes no lock.

        Args:
            out: float32 [C, S, S], written.
        """
        to_unit(self._pixels(row), out)

    def holds(self, row: int) -> bool:
        """Whether an image is in the cache, whole or not."""
        return bool(self._shard[row] >= 0)

    def get(self, row: int) -> Canvas | None:
        """The canvas of an image, or None if it is not in the cache or damaged there."""
        if self._shard[row] < 0:
            return None
        pixels = self._pixels(row)
        if not self._checked[row]:
            if checksum_of(pixels) != self._checksum[row]:
                self._shard[row] = -1
                return None
            self._checked[row] = True
        known = not np.isnan(self.size_mm[row]).any()
        size = (float(self.size_mm[row, 0]), float(self.size_mm[row, 1])) if known else None
        return Canvas(pixels, float(self.aspect[row]), size, bool(self.hounsfield[row]))

    def put(self, row: int, canvas: Canvas) -> bool:
        """Keep a canvas, unless it is kept, full or the disk does not take it; whether it is kept.

        Never raises: a cache that fails costs time, not the run.
        """
        key = self._keys[row]
        if key is None or not self.adding:
            return False
        with self._writing:
            if self._shard[row] >= 0:
                return True
            if not self.adding:
                return False
            try:
                return self._add(row, key, canvas)
            except OSError as error:
                self.adding = False
                self.say(
                    f"cache: {self.folder} takes no more ({error.strerror}): going on without"
                    " adding to it; images that are not in it are decoded each time"
                )
                return False

    def close(self) -> None:
        """Finish the shard that is being written and let go of the lock."""
        with self._writing:
            self.adding = False
            if self._own is not None:
                with contextlib.suppress(OSError):
                    self._own.close()
                self._own = None
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def __enter__(self) -> CanvasStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pixels(self, row: int) -> np.ndarray:
        return self._shards[self._shard[row]][self._record[row]]

    def _add(self, row: int, key: bytes, canvas: Canvas) -> bool:
        """Append a record and its entry. Under the lock. Raises OSError."""
        if self._own is not None and self._own.full:
            self._own.close()
            self._own = None
        if self._own is None:
            self._bytes = sum(map(size_on_disk, self._files()))
        if self._bytes + self._record_bytes > self.limit_bytes:
            self.adding = False
            self.say(
                f"cache: {self.folder} is full at {self.limit_bytes / 1e9:.3g} GB with"
                f" {len(self):,} of the {len(self._keys):,} images; the others are decoded each"
                " time (data.cache_gb is the limit)"
            )
            return False
        if self._own is None:
            self._own = CacheFileWriter(self.folder, self._shape)
            self._shards.append(self._own.records)
        checksum = checksum_of(canvas.pixels)
        record = self._own.append(key, checksum, canvas)
        self._bytes += self._record_bytes
        self._note(row, len(self._shards) - 1, record, checksum, canvas)
        self._checked[row] = True
        return True

    def _note(self, row: int, shard: int, record: int, checksum: int, canvas: Canvas) -> None:
        self._record[row], self._checksum[row] = record, checksum
        self.aspect[row], self.hounsfield[row] = canvas.aspect, canvas.hounsfield
        if canvas.size_mm is not None:
            self.size_mm[row] = canvas.size_mm
        self._shard[row] = shard  # last, as other threads look at it first

    def _open(self) -> None:
        """Find what is there, make room if there is none, and hold the lock from then on."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.listdir(self.folder)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} as cache: {error.strerror}") from error
        alone = self._lock()
        wanted = {key: row for row, key in enumerate(self._keys) if key is not None}
        useless: list[Path] = []
        for entries in self._files(".entries"):
            with contextlib.suppress(OSError):  # removed by another run meanwhile
                if not self._open_shard(entries, wanted):
                    useless.append(entries)
        if alone and self._lock_file is not None:
            with contextlib.suppress(OSError):
                self._make_room(useless, (len(wanted) - len(self)) * self._record_bytes)
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)

    def _lock(self) -> bool:
        """Hold the lock; whether no other run does. A folder that cannot be written is read."""
        try:
            self._lock_file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            self.adding = False
            self.say(f"cache: {self.folder} cannot be written ({error.strerror}): it is only read")
            return False
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is removed
                fcntl.flock(self._lock_file, fcntl.LOCK_SH)
            return False
        return True

    def _open_shard(self, path: Path, wanted: dict[bytes, int]) -> bool:
        """Take the wanted entries of a shard that are not there yet; whether there were any."""
        records, entries = read_shard(path, self._shape)
        found = [
            (wanted[entry.key], entry)
            for entry in entries
            if entry.key in wanted and self._shard[wanted[entry.key]] < 0
        ]
        if not found:
            return False
        self._shards.append(records)
        for row, entry in found:
            self._note(row, len(self._shards) - 1, entry.record, entry.checksum, entry.beside)
        with contextlib.suppress(OSError):
            os.utime(path)
        return True

    def _make_room(self, useless: list[Path], needed_bytes: int) -> None:
        """Remove leftovers, and useless shards until what is needed fits; the lock is ours."""
        for file in self._files():
            other = ".entries" if file.suffix == ".pixels" else ".pixels"
            if not file.with_suffix(other).exists():
                file.unlink(missing_ok=True)
        useless = [file for file in useless if file.exists()]
        sizes = {file: size_on_disk(file) for file in self._files()}
        total = sum(sizes.values())
        for entries in sorted(useless, key=lambda file: file.stat().st_mtime_ns):
            if total + needed_bytes <= self.limit_bytes:
                return
            for file in (entries, entries.with_suffix(".pixels")):
                file.unlink(missing_ok=True)
                total -= sizes.get(file, 0)

    def _files(self, suffix: str = "") -> list[Path]:
        return sorted(
            file
            for file in self.folder.glob(f"canvases-*{suffix}")
            if file.suffix in (".pixels", ".entries")
        )
