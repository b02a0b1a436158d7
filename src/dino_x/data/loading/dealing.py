"""The images of a step of very many, computed in time and memory that do not grow with them.

n images, B in an effective batch, T steps in an epoch, C chunks.

The rule. Images have a *place* each, with those of a patient, and of a series, beside each other
(`Layout`). The row of places is cut, between patients, into C chunks. In every epoch the chunks
come in another order, and the images, laid in that order, are dealt out to the T steps in turn,
as cards are: step t gets every T-th of them, from the t-th on.

Why a step holds at most ceil(m / T) of the m images that a patient has in the epoch, and of a
series: a chunk holds whole patients, so whatever the order of the chunks, the m images of a patient
are beside each other in what is dealt. Of m numbers in a row, floor(m / T) or ceil(m / T) leave the
same remainder when they are divided by T. The images of a series are beside each other within those
of their patient.

An epoch takes B to 2B - 1 images ahead from the next, and they are left out there. Those that are
taken ahead are put beside their patient's other images before dealing, so that the rule holds with
them. They fill the epoch's last step, and they shift what comes after them: if all patients had 4
images, and T were a multiple of 4, a first image would otherwise meet none but first ones.

What is kept is C numbers, of an epoch and of the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from dino_x.data.loading.permutation import permuted
from dino_x.randomness import generator


@dataclass(frozen=True, eq=False)
class Layout:
    """Images in a row of places, with those of a patient and a series beside each other.

    Attributes:
        rows_at: a function from places, int64 [m], to the numbers of their images, int64 [m].
        bounds: int64 [C + 1], where each chunk of whole patients begins, and n at the end. Chunks
            may be empty.
        begins: int64 [S], the place at which each source begins, if they have weights: the images
            of a source are then beside each other.
        draws: int64 [S], images that are drawn from each source in an epoch, n in all; None takes
            every image once.
    """

    rows_at: Callable[[np.ndarray], np.ndarray]
    bounds: np.ndarray
    begins: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    draws: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "_epoch", lru_cache(maxsize=3)(self._made))

    @property
    def images(self) -> int:
        """n."""
        return int(self.bounds[-1])

    def step(self, seed: int, step: int, effective_batch: int) -> np.ndarray:
        """The images of one step, as a pure function of the seed and the step.

        Args:
            seed: the run's seed, not negative.
            step: the optimizer step, from 0.
            effective_batch: B, at most n.

        Returns: row numbers, int64 [B].

        Raises: ValueError for more images a step than there are.
        """
        images, batch = self.images, effective_batch
        if batch > images:
            raise ValueError(f"an effective batch of {batch} is more than all {images} images")
        number = self.epoch_of(step, batch)
        first, after = (self.first_step(e, batch) for e in (number, number + 1))
        steps = after - first
        turn = permuted(np.array([step - first]), steps, seed, number, "order of steps")
        items = turn + steps * np.arange(batch)
        places = self._dealt(seed, number, batch, items)
        order = generator(seed, step, "order in a step").permutation(batch)
        return self.rows_at(places)[order]

    def epoch_of(self, step: int, effective_batch: int) -> int:
        """The epoch that a step belongs to, from 0."""
        more = _more_ahead(effective_batch, self.images) // effective_batch
        return max(0, step - more) * effective_batch // self.images

    def first_step(self, epoch: int, effective_batch: int) -> int:
        """The first step of an epoch."""
        dealt = epoch * self.images + taken_ahead(epoch, effective_batch, self.images)
        return dealt // effective_batch

    def _dealt(self, seed: int, number: int, batch: int, items: np.ndarray) -> np.ndarray:
        """The places of some of the images that an epoch deals out, int64 [m].

        These are its own images, in their order, without those that the epoch before took ahead,
        and with those that it takes ahead itself beside the other images of their patient.
        """
        own, following = (self._epoch(seed, e) for e in (number, number + 1))  # type: ignore[attr-defined]
        gone = _ahead(seed, number, batch, self.images)
        added = following.places(_ahead(seed, number + 1, batch, self.images))
        before = own.items_before(added)
        order = np.lexsort((added, before))
        added, before = added[order], before[order]
        at = before - np.searchsorted(gone, before) + np.arange(len(added))
        found = np.searchsorted(at, items)
        kept = items - found
        item = kept + np.searchsorted(gone - np.arange(len(gone)), kept, side="right")
        is_added = np.zeros(len(items), dtype=bool)
        inside = found < len(at)
        is_added[inside] = at[found[inside]] == items[inside]
        places = np.empty(len(items), dtype=np.int64)
        places[is_added] = added[found[is_added]]
        places[~is_added] = own.places(item[~is_added])
        return places

    def source_of(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First place, number of images, and images drawn, of each of these chunks' sources."""
        assert self.draws is not None
        source = np.searchsorted(self.begins, self.bounds[chunk], side="right") - 1
        size = np.maximum(np.diff(self.begins, append=self.images), 1)
        return self.begins[source], size[source], self.draws[source]

    def _made(self, seed: int, number: int) -> _Epoch:
        return _Epoch.of(self, seed, number)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """The order of the chunks in an epoch.

    An image with the number x of the m of its source comes floor((x + 1 + e) d / m) -
    floor((x + e) d / m) times in epoch e, where d are drawn from the source. These are d in all,
    evenly spread over its patients, and over the epochs each image comes equally often, up to one.

    Attributes:
        layout: the places.
        number: e.
        chunks: int64 [C], the number of each chunk in the order of this epoch.
        position: int64 [C], the opposite: the position of each chunk.
        ends: int64 [C], how many images there are up to the end of each position.
    """

    layout: Layout
    number: int
    chunks: np.ndarray
    position: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, layout: Layout, seed: int, number: int) -> _Epoch:
        chunks = generator(seed, number, "order of chunks").permutation(len(layout.bounds) - 1)
        position = np.empty_like(chunks)
        position[chunks] = np.arange(len(chunks))
        if layout.draws is None:
            images = np.diff(layout.bounds)
        else:
            every = np.arange(len(chunks))
            first, stop = (layout.bounds[every + more] for more in (0, 1))
            images = cls._drawn(layout, number, every, stop)
            images -= cls._drawn(layout, number, every, first)
        return cls(layout, number, chunks, position, np.cumsum(images[chunks]))

    @staticmethod
    def _drawn(layout: Layout, number: int, chunk: np.ndarray, places: np.ndarray) -> np.ndarray:
        """floor((x + e) d / m) of places in these chunks, or at their ends: int64 [m]."""
        begin, size, draws = layout.source_of(chunk)
        return (places - begin + number % size) * draws // size

    def places(self, items: np.ndarray) -> np.ndarray:
        """The places of the images with these numbers in the order of this epoch, int64 [m]."""
        at = np.searchsorted(self.ends, items, side="right")
        chunk = self.chunks[at]
        stop = self.layout.bounds[chunk + 1]
        left = self.ends[at] - items  # images up to the chunk's end, this one included
        if self.layout.draws is None:
            return stop - left
        begin, size, draws = self.layout.source_of(chunk)
        drawn = self._drawn(self.layout, self.number, chunk, stop) - left + 1
        return begin - (-drawn * size // draws) - 1 - self.number % size

    def items_before(self, places: np.ndarray) -> np.ndarray:
        """How many images come before these places in the order of this epoch, int64 [m]."""
        bounds = self.layout.bounds
        chunk = np.searchsorted(bounds, places, side="right") - 1
        at = self.position[chunk]
        before = np.where(at > 0, self.ends[at - 1], 0)
        if self.layout.draws is None:
            return before + places - bounds[chunk]
        within = self._drawn(self.layout, self.number, chunk, places)
        return before + within - self._drawn(self.layout, self.number, chunk, bounds[chunk])


def _more_ahead(batch: int, images: int) -> int:
    """How many more images an epoch takes ahead than its last step needs."""
    return batch if images >= 2 * batch else 0


def taken_ahead(epoch: int, batch: int, images: int) -> int:
    """How many images of an epoch the one before takes ahead; of the first one none."""
    if epoch == 0:
        return 0
    return -epoch * images % batch + _more_ahead(batch, images)


def _ahead(seed: int, epoch: int, batch: int, images: int) -> np.ndarray:
    """Which images of an epoch the one before takes ahead: numbers in its order, rising.

    They are spread evenly, so that few are of one patient.
    """
    taken = taken_ahead(epoch, batch, images)
    start = generator(seed, epoch, "images taken ahead").random()
    return ((np.arange(taken) + start) * images / max(taken, 1)).astype(np.int64)
