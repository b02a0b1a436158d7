"""Batches of canvases, decoded in threads or processes, in order, with unreadable images replaced.

Images that the cache on disk holds are copied from it straight into the batch, a share of it a
thread. All others are a task each: decoded, kept in the cache if it takes them, in memory if not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch

from dino_x.data.canvas.canvas import Canvas, CanvasCache, CanvasForm, make_canvas, to_unit
from dino_x.data.canvas.store import CanvasStore
from dino_x.data.image import ImageRef, Unreadable
from dino_x.data.index.index import UNREADABLE_SHARE, Index, Skipped
from dino_x.data.loading.neighbours import neighbours, read_slices
from dino_x.data.readers import registry
from dino_x.data.readers.decoding import Decoding
from dino_x.data.storage.member import any_remote, at_hand, rows_in_row_groups
from dino_x.errors import UserError

# A share says little about few images: fewer unreadable ones than this are never an error.
_ERROR_FROM = 10

# So many unreadable rows one after another are a lost disk, not a few broken files.
_LONGEST_REPLACEMENT = 1000

_FILLED_AT_A_TIME = 64


@dataclass(frozen=True)
class Canvases:
    """A batch of n images.

    Attributes:
        pixels: float32 [n, C, S, S] in [0, 1].
        aspect: float32 [n], height / width of each image before it became a square.
        size_mm: float32 [n, 2], its height and width in mm, not-a-number if unknown; None if all
            are.
        hounsfield: bool [n], whether 0 to 1 is `CT_RANGE` (data/windowing.py); None if none is.
    """

    pixels: torch.Tensor
    aspect: torch.Tensor
    size_mm: torch.Tensor | None = None
    hounsfield: torch.Tensor | None = None


@dataclass(frozen=True)
class _Loaded:
    """A canvas, and the rows that were tried before it and could not be read."""

    canvas: Canvas
    unreadable: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class _Started:
    """A batch on its way: what it will be, and the tasks that make it."""

    rows: np.ndarray
    pixels: np.ndarray
    copied: np.ndarray  # bool, which places are copied from the cache on disk
    copies: list[Future[None]]
    loads: dict[int, Future[_Loaded]]  # by row


class Loader:
    """Reads images of an index as canvases. The result never depends on the number of workers.

    An image that turns out to be unreadable is replaced by the next row that can be read
    ((i + 1) mod n, and so on) and listed in `skipped`.

    Args:
        index: the images.
        form: of their canvases.
        cache_bytes: canvases up to this many bytes are kept in memory.
        workers: threads that decode, or have a process that does, at least 1.
        fetches: images that are fetched from an object store at a time: while a fetch waits for
            the store, others do, too. Twice as many are on their way ahead of what is asked for.
        store: the cache on disk, of the same images and form; closed with the loader.
        decoding: where images are decoded; closed with the loader.
    """

    def __init__(
        self,
        index: Index,
        form: CanvasForm,
        *,
        cache_bytes: int,
        workers: int,
        fetches: int = 32,
        store: CanvasStore | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self.index = index
        self.form = form
        self.skipped: list[Skipped] = []
        self.cache = CanvasCache(cache_bytes)
        self.store = store
        self.decoding = decoding or Decoding()
        self.workers = max(1, workers)
        self._slices = neighbours(index.rows).triples if form.slices == 3 else None
        self._seen: set[int] = set()
        self._unreadable: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dino-x-read")
        self._fetches = fetches if any_remote(index.rows) else 0
        self._fetch_pool = ThreadPoolExecutor(max(1, fetches), thread_name_prefix="dino-x-fetch")
        self._fetched: dict[int, Future[list[ImageRef]]] = {}

    def batch(self, indices: np.ndarray) -> Canvases:
        """The canvases of some rows, in their order.

        Args:
            indices: row numbers, int [n], n >= 1.

        Raises: UserError if more than 1 in 10 of the images seen so far (and at least 10) were
            unreadable.
        """
        return self._finish(self._start(indices))

    def prefetch(self, batches: Iterable[np.ndarray]) -> Iterator[Canvases]:
        """`batch` for each of `batches`, in order, with the next one read meanwhile."""
        started: deque[_Started] = deque()
        try:
            for indices in self._fetching_ahead(batches):
                started.append(self._start(indices))
                if len(started) > 1:
                    yield self._finish(started.popleft())
            while started:
                yield self._finish(started.popleft())
        finally:
            for batch in started:
                for copy in batch.copies:
                    copy.cancel()
                for load in batch.loads.values():
                    load.cancel()
            for fetch in self._fetched.values():
                fetch.cancel()
            self._fetched.clear()

    def _fetching_ahead(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The batches, with the encoded images of later ones on their way from their store."""
        ahead: deque[np.ndarray] = deque()
        for indices in batches:
            self._fetch(indices)
            ahead.append(indices)
            while ahead and sum(map(len, ahead)) >= 2 * self._fetches:
                yield ahead.popleft()
        yield from ahead

    def _fetch(self, indices: np.ndarray) -> None:
        """Begin to fetch images of an object store that are not kept anywhere here."""
        if not self._fetches:
            return
        for row in map(int, indices):
            here = self.cache.get(row) is not None or (self.store and self.store.holds(row))
            if row not in self._fetched and not here:
                self._fetched[row] = self._fetch_pool.submit(self._encoded, row)

    def _encoded(self, row: int) -> list[ImageRef]:
        """What is read for a row, in 2.5D three images, with their bytes at hand."""
        rows = [row] if self._slices is None else self._slices[row]
        held = {int(i): at_hand(self.index.rows[i]) for i in dict.fromkeys(rows)}
        return [held[int(i)] for i in rows]

    def fill(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Keep images of Parquet files in the cache on disk, in the order in which they lie there.

        In a random order a whole row group would be read for each of them.

        Args:
            on_progress: called with (done, total).

        Raises: UserError as of `batch`.
        """
        if self.store is None:
            return
        left = [row for row in rows_in_row_groups(self.index.rows) if not self.store.holds(row)]
        for start in range(0, len(left), _FILLED_AT_A_TIME):
            if not self.store.adding:
                return
            rows = left[start : start + _FILLED_AT_A_TIME]
            loads = {row: self._pool.submit(self._load, row) for row in rows}
            self._account({row: load.result() for row, load in loads.items()})
            if on_progress is not None:
                on_progress(start + len(rows), len(left))

    def close(self) -> None:
        """Stop the threads; what was started and not finished is dropped."""
        self._fetch_pool.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.decoding.close()
        if self.store is not None:
            self.store.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, indices: np.ndarray) -> _Started:
        rows = np.asarray(indices)
        form = self.form
        pixels = np.empty((len(rows), form.channels, form.side, form.side), dtype=np.float32)
        copied = np.zeros(len(rows), dtype=bool) if self.store is None else self.store.ready(rows)
        places = np.flatnonzero(copied)
        copies = [
            self._pool.submit(self._copy, rows, share, pixels)
            for share in np.array_split(places, min(self.workers, len(places)) or 1)
            if len(share)
        ]
        left = dict.fromkeys(int(row) for row in rows[~copied])  # in order; repeated rows once
        self._fetch(rows[~copied])
        loads = {
            row: self._pool.submit(self._load, row, self._fetched.pop(row, None)) for row in left
        }
        return _Started(rows, pixels, copied, copies, loads)

    def _copy(self, rows: np.ndarray, places: np.ndarray, pixels: np.ndarray) -> None:
        """Some places of a batch from the cache on disk. Runs in a thread."""
        assert self.store is not None
        for place in places:
            self.store.copy_to(rows[place], pixels[place])

    def _finish(self, batch: _Started) -> Canvases:
        for copy in batch.copies:
            copy.result()
        loaded = {row: future.result() for row, future in batch.loads.items()}
        self._seen.update(batch.rows[batch.copied].tolist())
        self._account(loaded)
        n = len(batch.rows)
        aspect, size_mm = np.empty(n, np.float32), np.full((n, 2), np.nan, np.float32)
        hounsfield = np.zeros(n, dtype=bool)
        if self.store is not None:
            rows = batch.rows[batch.copied]
            aspect[batch.copied] = self.store.aspect[rows]
            size_mm[batch.copied] = self.store.size_mm[rows]
            hounsfield[batch.copied] = self.store.hounsfield[rows]
        for place in np.flatnonzero(~batch.copied):
            canvas = loaded[int(batch.rows[place])].canvas
            to_unit(canvas.pixels, batch.pixels[place])
            aspect[place], hounsfield[place] = canvas.aspect, canvas.hounsfield
            if canvas.size_mm is not None:
                size_mm[place] = canvas.size_mm
        return Canvases(
            torch.from_numpy(batch.pixels),
            torch.from_numpy(aspect),
            None if np.isnan(size_mm).all() else torch.from_numpy(size_mm),
            torch.from_numpy(hounsfield) if hounsfield.any() else None,
        )

    def _load(self, row: int, fetch: Future[list[ImageRef]] | None = None) -> _Loaded:
        """The canvas of a row or of the next one that can be read. Runs in a thread."""
        if (kept := self.cache.get(row)) is not None:
            return _Loaded(kept)
        unreadable: list[tuple[int, str]] = []
        tries = min(len(self.index), _LONGEST_REPLACEMENT)
        for candidate in ((row + step) % len(self.index) for step in range(tries)):
            reason = self._unreadable.get(candidate)
            if reason is None:
                try:
                    refs = fetch.result() if fetch and candidate == row else None
                    canvas = self._canvas(candidate, row, refs)
                except Unreadable as error:
                    reason = str(error)
                else:
                    return _Loaded(canvas, tuple(unreadable))
            unreadable.append((candidate, reason))
        raise UserError(
            f"{tries} images in a row cannot be read any more, from "
            f"{self.index.rows[row].path}: {unreadable[0][1]}; is their disk still there?"
        )

    def _canvas(self, row: int, asked_for: int, refs: list[ImageRef] | None) -> Canvas:
        """From the cache on disk, or decoded, and then kept. Raises Unreadable."""
        if self.store is not None and (kept := self.store.get(row)) is not None:
            return kept
        if refs is None:  # not fetched ahead
            rows = [row] if self._slices is None else self._slices[row]
            refs = [self.index.rows[i] for i in rows]
        canvas = self.decoding.run(decoded, refs, self.form)
        if self.store is None or not self.store.put(row, canvas):
            self.cache.put(asked_for, canvas)
        return canvas

    def _account(self, loaded: dict[int, _Loaded]) -> None:
        """List what was unreadable in this batch, once each; stop if it is too much."""
        for row, result in loaded.items():
            self._seen.add(row)
            for bad, reason in result.unreadable:
                self._seen.add(bad)
                if bad not in self._unreadable:
                    self._unreadable[bad] = reason
                    self.skipped.append(Skipped(self.index.rows[bad].path, reason))
        count, seen = len(self._unreadable), len(self._seen)
        if count >= _ERROR_FROM and count > UNREADABLE_SHARE * seen:
            first = self.skipped[0]
            raise UserError(
                f"{count} of the {seen} images seen so far cannot be read, more than 1 in 10; "
                f"the first is {first.path}: {first.reason}"
            )


def decoded(refs: Sequence[ImageRef], form: CanvasForm) -> Canvas:
    """The canvas of one image; in 2.5D of a slice and its neighbours. Raises Unreadable."""
    if form.slices == 3:
        return make_canvas(read_slices(refs), form)
    image = registry.read(refs[0])
    if image.spacing_mm is None and refs[0].spacing_mm is not None:
        image = replace(image, spacing_mm=refs[0].spacing_mm)
    return make_canvas(image, form)
