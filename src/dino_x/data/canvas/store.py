"""Canvases on disk: an image is decoded once, for all runs that prepare it in the same way.

    DIR/lock             held, shared, by every run that uses the cache
    DIR/canvases-ID.*    cache files, see cache_files.py

- A process writes cache files of its own only, so that any number may build one cache at once. At
  the worst an image is in it twice.
- What a killed process or a full disk leaves half-written has no entry, or has one whose checksum
  is wrong when it is first used: the image is then decoded again.
- Keys are hashes of the file's path, size and time and of how the canvas was made, and those of
  the file of its values if it has one. A changed file has another key. No name of a file is in
  the cache.
- The folder is bounded. When it is full nothing more is added: as every epoch visits every image
  once, the cache hits in proportion to its size. A run that starts and needs room removes whole
  cache files that it has no use for, those unused for longest first, unless another run is using
  the cache at that moment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dino_x.data.canvas.cache_files import (
    ENTRY_BYTES,
    CacheFileWriter,
    Records,
    checksum_of,
    read_cache_file,
    size_on_disk,
)
from dino_x.data.canvas.canvas import Canvas, CanvasForm, to_unit
from dino_x.data.image import ImageRef
from dino_x.data.readers.several_files import version_of_image
from dino_x.errors import UserError
from dino_x.machine.system import lock_alone, lock_shared

# Raise it when readers or make_canvas give other values for the same file: old entries then no
# longer count, and are removed when room is needed.
PREPARATION = 3


def keys_of(
    rows: Sequence[ImageRef], form: CanvasForm, neighbours: np.ndarray | None = None
) -> list[bytes | None]:
    """The key of each image's canvas, 16 bytes; None for a file that is not there.

    Args:
        rows: the images.
        form: the form of the canvases.
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
            version, last = version_of_image(row.path, row.format), row.path
            file = None if version is None else os.fsencode(version)
        what = (
            f"|{row.frame}|{row.height}|{row.width}|{row.spacing_mm}|{row.axis}|{row.modality}|"
        ).encode()
        sources.append(None if file is None else file + what)
    if neighbours is not None:
        sources = [_joined([sources[i] for i in triple]) for triple in neighbours]
    return [None if source is None else _key(source + made) for source in sources]


def _joined(parts: Sequence[bytes | None]) -> bytes | None:
    """All parts one after another, or None if one of them is None."""
    known = [part for part in parts if part is not None]
    return b"".join(known) if len(known) == len(parts) else None


def _key(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()


class CanvasStore:
    """The canvases of a run's images, in a folder that other runs may share.

    Args:
        folder: the folder; it is made if it is missing.
        keys: the keys of the run's images, see `keys_of`.
        form: the form of their canvases.
        limit_bytes: what the folder may hold. Several runs that add at once see each other only
            when they begin a cache file, and may pass the limit by one file each.
        say: called with the reason, once, when canvases are no longer kept.

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
        self._records: list[Records] = []  # of each cache file
        n = len(keys)
        self._file = np.full(n, -1, dtype=np.int32)  # of each image, in `_records`; -1: in none
        self._place = np.zeros(n, dtype=np.int64)
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
        return int((self._file >= 0).sum())

    def ready(self, rows: np.ndarray) -> np.ndarray:
        """Whether images can be copied at once, being in the cache and checked, bool [n]."""
        return self._checked[rows]

    def copy_to(self, row: int, out: np.ndarray) -> bool:
        """Write the pixels of an image that is `ready` as float32 in [0, 1]. Takes no lock.

        Args:
            row: the number of the image.
            out: float32 [C, S, S].

        Returns: whether they are there; they are not if the cache file was cut off meanwhile.
        """
        pixels = self._pixels(row)
        if pixels is None:
            return False
        to_unit(pixels, out)
        return True

    def holds(self, row: int) -> bool:
        """Whether an image is in the cache, whole or not."""
        return bool(self._file[row] >= 0)

    def get(self, row: int) -> Canvas | None:
        """The canvas of an image, or None if it is not in the cache or is damaged there."""
        if self._file[row] < 0:
            return None
        pixels = self._pixels(row)
        if pixels is None:
            self._forget(row)
            return None
        if not self._checked[row]:
            if checksum_of(pixels) != self._checksum[row]:
                self._forget(row)
                return None
            self._checked[row] = True
        known = not np.isnan(self.size_mm[row]).any()
        size = (float(self.size_mm[row, 0]), float(self.size_mm[row, 1])) if known else None
        return Canvas(pixels, float(self.aspect[row]), size, bool(self.hounsfield[row]))

    def put(self, row: int, canvas: Canvas) -> bool:
        """Keep a canvas, if there is room and the disk takes it; return whether it is kept.

        It never raises: a cache that fails costs time, not the run.
        """
        key = self._keys[row]
        if key is None or not self.adding:
            return False
        with self._writing:
            if self._file[row] >= 0:
                return True
            if not self.adding:
                return False
            try:
                return self._add(row, key, canvas)
            except OSError as error:
                self.adding = False
                self.say(
                    f"cache: {self.folder} takes no more ({error.strerror}): the run continues"
                    " without adding to it; images that are not in it are decoded each time"
                )
                return False

    def close(self) -> None:
        """Finish the cache file that is being written and release the lock."""
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pixels(self, row: int) -> np.ndarray | None:
        file = self._file[row]  # another thread may forget it meanwhile
        return self._records[file].read(int(self._place[row])) if file >= 0 else None

    def _forget(self, row: int) -> None:
        """An image that is not in the cache any more."""
        self._checked[row] = False
        self._file[row] = -1

    def _add(self, row: int, key: bytes, canvas: Canvas) -> bool:
        """Append a record and its entry; return whether there was room. Raises OSError.

        The caller holds the lock `_writing`.
        """
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
            self._records.append(self._own.records)
        checksum = checksum_of(canvas.pixels)
        record = self._own.append(key, checksum, canvas)
        self._bytes += self._record_bytes
        self._note(row, len(self._records) - 1, record, checksum, canvas)
        self._checked[row] = True
        return True

    def _note(self, row: int, file: int, record: int, checksum: int, canvas: Canvas) -> None:
        """Remember where a canvas is, and what is kept beside its pixels."""
        self._place[row], self._checksum[row] = record, checksum
        self.aspect[row], self.hounsfield[row] = canvas.aspect, canvas.hounsfield
        if canvas.size_mm is not None:
            self.size_mm[row] = canvas.size_mm
        self._file[row] = file  # last, as other threads look at it first

    def _open(self) -> None:
        """Find the canvases that are there, make room if it is needed, and keep the lock."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            os.listdir(self.folder)
        except OSError as error:
            raise UserError(f"cannot use {self.folder} as cache: {error.strerror}") from error
        alone = self._lock()
        wanted = {key: row for row, key in enumerate(self._keys) if key is not None}
        useless: list[Path] = []
        for entries in self._files(".entries"):
            with contextlib.suppress(OSError):  # another run may have removed it meanwhile
                if not self._take_entries(entries, wanted):
                    useless.append(entries)
        if alone and self._lock_file is not None:
            with contextlib.suppress(OSError):
                self._make_room(useless, (len(wanted) - len(self)) * self._record_bytes)
            lock_shared(self._lock_file)

    def _lock(self) -> bool:
        """Take the lock; return whether no other run has it.

        A folder that cannot be written to is only read.
        """
        try:
            self._lock_file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            self.adding = False
            self.say(f"cache: {self.folder} cannot be written ({error.strerror}): it is only read")
            return False
        if lock_alone(self._lock_file):
            return True
        lock_shared(self._lock_file)  # on a file system without locks nothing is removed
        return False

    def _take_entries(self, path: Path, wanted: dict[bytes, int]) -> bool:
        """Take the wanted entries of a cache file that are new; return whether there were any."""
        records, entries = read_cache_file(path, self._shape)
        found = []
        for entry in entries:
            row = wanted.get(entry.key)
            if row is not None and self._file[row] < 0:
                found.append((row, entry))
        if records is None or not found:
            return False
        self._records.append(records)
        for row, entry in found:
            self._note(row, len(self._records) - 1, entry.record, entry.checksum, entry.canvas)
        with contextlib.suppress(OSError):
            os.utime(path)
        return True

    def _make_room(self, useless: list[Path], needed_bytes: int) -> None:
        """Remove leftovers, then useless cache files until what is needed fits.

        No other run has the lock.
        """
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
