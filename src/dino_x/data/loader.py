"""Batches of canvases, decoded in threads, in order, with unreadable images replaced."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch

from dino_x.data import readers
from dino_x.data.cache import Canvas, CanvasCache, make_canvas
from dino_x.data.image import Unreadable
from dino_x.data.index import UNREADABLE_SHARE, Index, Skipped
from dino_x.errors import UserError

# A share says little about few images: fewer unreadable ones than this are never an error.
_ERROR_FROM = 10

# So many unreadable rows one after another are a lost disk, not a few broken files.
_LONGEST_REPLACEMENT = 1000


@dataclass(frozen=True)
class Canvases:
    """A batch of n images.

    Attributes:
        pixels: float32 [n, C, S, S] in [0, 1].
        aspect: float32 [n], height / width of each image before it became a square.
    """

    pixels: torch.Tensor
    aspect: torch.Tensor


@dataclass(frozen=True)
class _Loaded:
    """A canvas, and the rows that were tried before it and could not be read."""

    canvas: Canvas
    unreadable: tuple[tuple[int, str], ...] = ()


class Loader:
    """Reads images of an index as canvases. The result never depends on the number of workers.

    An image that turns out to be unreadable is replaced by the next row that can be read
    ((i + 1) mod n, and so on) and listed in `skipped`.

    Args:
        index: the images.
        side: S, see `cache.canvas_side`.
        channels: 1 or 3.
        cache_bytes: canvases up to this many bytes are kept in memory.
        workers: threads that decode, at least 1.
    """

    def __init__(
        self,
        index: Index,
        side: int,
        channels: int,
        *,
        cache_bytes: int,
        workers: int,
    ) -> None:
        self.index = index
        self.side = side
        self.channels = channels
        self.skipped: list[Skipped] = []
        self.cache = CanvasCache(cache_bytes)
        self._seen: set[int] = set()
        self._unreadable: dict[int, str] = {}
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="dino-x-read")

    def batch(self, indices: np.ndarray) -> Canvases:
        """The canvases of some rows, in their order.

        Args:
            indices: row numbers, int [n], n >= 1.

        Raises: UserError if more than 1 in 10 of the images seen so far (and at least 10) were
            unreadable.
        """
        return self._finish(indices, self._start(indices))

    def prefetch(self, batches: Iterable[np.ndarray]) -> Iterator[Canvases]:
        """`batch` for each of `batches`, in order, with the next one read meanwhile."""
        started: deque[tuple[np.ndarray, dict[int, Future[_Loaded]]]] = deque()
        try:
            for indices in batches:
                started.append((indices, self._start(indices)))
                if len(started) > 1:
                    yield self._finish(*started.popleft())
            while started:
                yield self._finish(*started.popleft())
        finally:
            for _, futures in started:
                for future in futures.values():
                    future.cancel()

    def close(self) -> None:
        """Stop the threads; what was started and not finished is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, indices: np.ndarray) -> dict[int, Future[_Loaded]]:
        rows = dict.fromkeys(int(row) for row in indices)  # in order; a row that repeats once
        return {row: self._pool.submit(self._load, row) for row in rows}

    def _finish(self, indices: np.ndarray, futures: dict[int, Future[_Loaded]]) -> Canvases:
        loaded = {row: future.result() for row, future in futures.items()}
        self._account(loaded)
        canvases = [loaded[int(row)].canvas for row in indices]
        pixels = np.stack([canvas.pixels for canvas in canvases]).astype(np.float32)
        pixels /= np.float32(65535)
        aspect = torch.tensor([canvas.aspect for canvas in canvases], dtype=torch.float32)
        return Canvases(torch.from_numpy(pixels), aspect)

    def _load(self, row: int) -> _Loaded:
        """The canvas of a row or of the next one that can be read. Runs in a thread."""
        if (kept := self.cache.get(row)) is not None:
            return _Loaded(kept)
        unreadable: list[tuple[int, str]] = []
        tries = min(len(self.index), _LONGEST_REPLACEMENT)
        for candidate in ((row + step) % len(self.index) for step in range(tries)):
            reason = self._unreadable.get(candidate)
            if reason is None:
                try:
                    image = readers.read(self.index.rows[candidate])
                except Unreadable as error:
                    reason = str(error)
                else:
                    canvas = make_canvas(image, self.side, self.channels)
                    self.cache.put(row, canvas)
                    return _Loaded(canvas, tuple(unreadable))
            unreadable.append((candidate, reason))
        raise UserError(
            f"{tries} images in a row cannot be read any more, from "
            f"{self.index.rows[row].path}: {unreadable[0][1]}; is their disk still there?"
        )

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
