"""Batches of canvases, decoded in threads or processes, in order, with unreadable images replaced.

Images that the disk cache holds are copied from it straight into the batch; each thread copies a
share of them. Every other image is a task: it is decoded, and kept in the disk cache, or in memory
if the disk cache does not take it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from dino_x.data.canvas.canvas import Canvas, CanvasCache, CanvasForm, make_canvas, to_unit
from dino_x.data.canvas.store import CanvasStore
from dino_x.data.image import ImageRef, Unreadable
from dino_x.data.index.chosen import Marked
from dino_x.data.index.listed import UNREADABLE_SHARE, Index, Skipped
from dino_x.data.index.rows import Rows, any_in_store
from dino_x.data.loading.neighbours import neighbours, read_slices
from dino_x.data.readers import registry
from dino_x.data.readers.decoding import Decoding
from dino_x.data.storage.member import at_hand, rows_in_row_groups
from dino_x.errors import UserError

# A share says little about few images: fewer unreadable images than this are never an error.
_ERROR_FROM = 10

# This many unreadable rows one after another are a lost disk, not a few broken files.
_LONGEST_REPLACEMENT = 1000

_FILLED_AT_A_TIME = 64


@dataclass(frozen=True)
class Canvases:
    """A batch of n images.

    Attributes:
        pixels: float32 [n, C, S, S] in [0, 1].
        aspect: float32 [n], height / width of each image before it became a square.
        size_mm: float32 [n, 2], height and width of each image in mm, NaN if they are unknown;
            None if they are unknown for all.
        hounsfield: bool [n], whether 0 to 1 is `windowing.CT_RANGE`; None if that is so for none.
    """

    pixels: torch.Tensor
    aspect: torch.Tensor
    size_mm: torch.Tensor | None = None
    hounsfield: torch.Tensor | None = None


@dataclass(frozen=True)
class _Loaded:
    """A canvas, and the rows that were tried before it and are unreadable, with the reasons."""

    canvas: Canvas
    unreadable: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class _Started:
    """A batch that is being made.

    Attributes:
        rows: int [n], the rows of its images.
        pixels: float32 [n, C, S, S], filled by the tasks.
        copied: bool [n], which images are copied from the disk cache.
        copies: the tasks that copy.
        loads: the tasks that load the other images, by row.
    """

    rows: np.ndarray
    pixels: np.ndarray
    copied: np.ndarray
    copies: list[Future[list[int]]]
    loads: dict[int, Future[_Loaded]]


class Loader:
    """Reads images of an index as canvases. The result never depends on the number of workers.

    An image that turns out to be unreadable is replaced by the next row that can be read
    ((i + 1) mod n, and so on) and listed in `skipped`.

    Args:
        index: the images.
        form: how their canvases are made.
        cache_bytes: canvases up to this many bytes are kept in memory.
        workers: number of threads that decode, or have a process that decodes; at least 1.
        fetches: number of images that are fetched from an object store at a time. Twice as many
            are fetched ahead of the batch that is asked for.
        store: the disk cache of the same images and form; closed with the loader.
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
        self._seen = Marked(len(index))
        self._unreadable: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dino-x-read")
        self._fetches = fetches if any_in_store(index.rows) else 0
        self._fetch_pool = ThreadPoolExecutor(max(1, fetches), thread_name_prefix="dino-x-fetch")
        self._fetched: dict[int, Future[list[ImageRef]]] = {}

    def batch(self, indices: np.ndarray) -> Canvases:
        """The canvases of some rows, in their order.

        Args:
            indices: row numbers, int [n], n >= 1.

        Raises: UserError if more than 1 in 10 of the images seen so far, and at least 10, were
            unreadable.
        """
        return self._finish(self._start(indices))

    def prefetch(self, batches: Iterable[np.ndarray]) -> Iterator[Canvases]:
        """Give `batch` of each of `batches` in order, and read the next one meanwhile."""
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
        """The batches; the encoded images of later ones are being fetched from their store."""
        ahead: deque[np.ndarray] = deque()
        for indices in batches:
            self._fetch(indices)
            ahead.append(indices)
            while ahead and sum(map(len, ahead)) >= 2 * self._fetches:
                yield ahead.popleft()
        yield from ahead

    def _fetch(self, indices: np.ndarray) -> None:
        """Begin to fetch images from an object store, except those that are in a cache."""
        if not self._fetches:
            return
        for row in map(int, indices):
            if row not in self._fetched and not self._is_kept(row):
                self._fetched[row] = self._fetch_pool.submit(self._encoded, row)

    def _is_kept(self, row: int) -> bool:
        """Whether the canvas of a row is in memory or in the disk cache."""
        if self.cache.get(row) is not None:
            return True
        return self.store is not None and self.store.holds(row)

    def _encoded(self, row: int) -> list[ImageRef]:
        """The images that are read for a row, with their bytes at hand."""
        refs = self._refs(row)
        held = {ref: at_hand(ref) for ref in dict.fromkeys(refs)}
        return [held[ref] for ref in refs]

    def _refs(self, row: int) -> list[ImageRef]:
        """The images that are read for a row: one, and in 2.5D three."""
        if self._slices is None:
            return [self.index.rows[row]]
        return [self.index.rows[i] for i in self._slices[row]]

    def fill(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Keep images of Parquet files in the disk cache, in the order in which they lie there.

        In a random order a whole row group would be read for each of them.

        Args:
            on_progress: called with (done, total).

        Raises: UserError as `batch` does.
        """
        if self.store is None:
            return
        if isinstance(self.index.rows, Rows) and not self.index.rows.in_row_groups:
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
        """Stop the threads; tasks that have not begun are dropped."""
        self._fetch_pool.shutdown(wait=True, cancel_futures=True)
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.decoding.close()
        if self.store is not None:
            self.store.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, indices: np.ndarray) -> _Started:
        """Start the tasks that make a batch."""
        rows = np.asarray(indices)
        form = self.form
        pixels = np.empty((len(rows), form.channels, form.side, form.side), dtype=np.float32)
        copied = np.zeros(len(rows), dtype=bool) if self.store is None else self.store.ready(rows)
        places = np.flatnonzero(copied)
        copies = []
        for share in np.array_split(places, min(self.workers, len(places)) or 1):
            if len(share):
                copies.append(self._pool.submit(self._copy, rows, share, pixels))
        left = dict.fromkeys(rows[~copied].tolist())  # in order; repeated rows once
        self._fetch(rows[~copied])
        loads = {}
        for row in left:
            fetch = self._fetched.pop(row, None)
            loads[row] = self._pool.submit(self._load, row, fetch)
        return _Started(rows, pixels, copied, copies, loads)

    def _copy(self, rows: np.ndarray, places: np.ndarray, pixels: np.ndarray) -> list[int]:
        """Copy images from the disk cache into their places in a batch. Runs in a thread.

        Returns: the places of those that are not in the cache any more.
        """
        assert self.store is not None
        return [place for place in places if not self.store.copy_to(rows[place], pixels[place])]

    def _finish(self, batch: _Started) -> Canvases:
        """Wait for the tasks of a batch and put it together."""
        loaded = {row: future.result() for row, future in batch.loads.items()}
        for lost in chain.from_iterable(copy.result() for copy in batch.copies):
            batch.copied[lost] = False
            row = int(batch.rows[lost])
            if row not in loaded:
                loaded[row] = self._load(row)
        self._seen.mark(batch.rows[batch.copied])
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
        """The canvas of a row, or of the next row that can be read. Runs in a thread."""
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
            f"{tries} images one after another cannot be read any more, from "
            f"{self.index.rows[row].path}: {unreadable[0][1]}; is their disk still there?"
        )

    def _canvas(self, row: int, asked_for: int, refs: list[ImageRef] | None) -> Canvas:
        """The canvas of a row: from the disk cache, or decoded and then kept. Raises Unreadable."""
        if self.store is not None and (kept := self.store.get(row)) is not None:
            return kept
        canvas = self.decoding.run(decoded, refs or self._refs(row), self.form)
        if self.store is None or not self.store.put(row, canvas):
            self.cache.put(asked_for, canvas)
        return canvas

    def _account(self, loaded: dict[int, _Loaded]) -> None:
        """List the images of a batch that were unreadable; raise UserError if they are too many."""
        for row, result in loaded.items():
            self._seen.mark(row)
            for bad, reason in result.unreadable:
                self._seen.mark(bad)
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
    """Decode one image, in 2.5D a slice and its neighbours, to a canvas. Raises Unreadable."""
    if form.slices == 3:
        return make_canvas(read_slices(refs), form)
    image = registry.read(refs[0])
    if image.spacing_mm is None and refs[0].spacing_mm is not None:
        image = replace(image, spacing_mm=refs[0].spacing_mm)
    return make_canvas(image, form)
