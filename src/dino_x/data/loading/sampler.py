"""Which images make up a batch: a pure function of the seed and the step.

Slices next to each other are near duplicates; images of one patient are alike, too, if less so. In
one batch KoLeo would push them apart, and Sinkhorn-Knopp would spread them over different
prototypes. Where patients or series are known, a step therefore holds as few images of each as
possible.

n images, B in an effective batch, T steps in an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dino_x.data.image import ImageRef
from dino_x.data.index.rows import Groups, Rows, groups_of_rows
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.permutation import permuted
from dino_x.randomness import generator

# From so many images on the order of an epoch is computed, and not kept: see dealing.py.
COMPUTED_FROM = 10_000_000
ORDER = "computed order 1"  # another rule has another number, so that no run changes its batches


@dataclass(frozen=True, eq=False)
class Strata:
    """What is known of n images and decides which of them come together in a step.

    Attributes:
        rows: int64 [n], all images, those of a series beside each other in the order of their
            positions, and the series of a patient beside each other.
        start: int64 [G], where each series begins in `rows`.
        size: int64 [G], the number of images of each series.
        patient: int64 [G], the number of each series' patient.
        draws: int64 [sources], images drawn from each source in n; None: every image once.
        members: the images of each source, if there are `draws`.
    """

    rows: np.ndarray
    start: np.ndarray
    size: np.ndarray
    patient: np.ndarray
    draws: np.ndarray | None = None
    members: tuple[np.ndarray, ...] = ()

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """All images with those of a patient, and of a series, beside each other; int64 [n].

        Patients and their series come in random order. Within a series the order is kept, so that
        images far apart in the result are far apart in the patient.
        """
        patients = rng.permutation(int(self.patient.max()) + 1)
        series = rng.random(len(self.start))
        blocks = np.lexsort((series, patients[self.patient]))
        size = self.size[blocks]
        within = np.arange(len(self.rows)) - np.repeat(np.cumsum(size) - size, size)
        return self.rows[np.repeat(self.start[blocks], size) + within]


def strata_of(
    rows: Sequence[ImageRef],
    weights: str | Sequence[float] = "size",
    patients: Mapping[Path, str] | None = None,
) -> Strata | None:
    """The patients, series and sources of images, or None if nothing is known that matters.

    Args:
        rows: n images.
        weights: of the sources: "size" (as many as they have), "equal", or a number for each.
            The weight of a source without images does not count.
        patients: keys of patients, by file, for images that do not name theirs.

    Raises: ValueError if no source with images has a weight above 0.
    """
    source = rows.sources() if isinstance(rows, Rows) else np.array([ref.source for ref in rows])
    draws, members = _draws(source, weights)
    if isinstance(rows, Rows) and not patients:
        groups = groups_of_rows(rows)
    else:
        groups = _groups(rows, patients or {})
    if draws is None and not groups.known:
        return None
    order = np.lexsort((groups.position, groups.series, groups.patient))
    sorted_series = groups.series[order]
    start = np.flatnonzero(np.diff(sorted_series, prepend=-1))
    size = np.diff(start, append=len(rows))
    return Strata(order, start, size, groups.patient[order[start]], draws, members)


def _groups(rows: Sequence[ImageRef], named: Mapping[Path, str]) -> Groups:
    # Numbers by first appearance: the keys themselves are salted hashes, whose order is arbitrary.
    patients: dict[object, int] = {}
    series: dict[object, int] = {}
    patient_of, series_of, position = [], [], []
    of_volumes = _files_of_volumes(rows)
    for row, ref in enumerate(rows):
        whole = ref.path if ref.path in of_volumes else ref.series
        of_patient = ref.patient or named.get(ref.path)
        whose = ("patient", of_patient) if of_patient else ("series", whole or row)
        patient = patients.setdefault(whose, len(patients))
        patient_of.append(patient)
        which = (patient, whole) if whole else row
        series_of.append(series.setdefault(which, len(series)))
        position.append(ref.position_mm or 0.0)
    known = any(
        ref.patient is not None or ref.series is not None or ref.path in named for ref in rows
    )
    return Groups(np.array(patient_of), np.array(series_of), np.array(position), known)


def _files_of_volumes(rows: Sequence[ImageRef]) -> set[Path]:
    """Files that hold several volumes: times of one body, whose slices are near duplicates.

    All of such a file counts as one series. Sorted by position, the times of a slice then lie
    beside each other, and are dealt to different steps.
    """
    first: dict[Path, str | None] = {}
    found: set[Path] = set()
    for ref in rows:
        if ref.series != first.setdefault(ref.path, ref.series):
            found.add(ref.path)
    return found


def _draws(
    source: np.ndarray, weights: str | Sequence[float]
) -> tuple[np.ndarray | None, tuple[np.ndarray, ...]]:
    """Images drawn from each source in n, and the images of each; None for every image once."""
    present, counts = np.unique(source, return_counts=True)
    draws = draws_of(present, counts, weights)
    if draws is None:
        return None, ()
    return draws, tuple(np.flatnonzero(source == number) for number in present)


def draws_of(
    present: np.ndarray, counts: np.ndarray, weights: str | Sequence[float]
) -> np.ndarray | None:
    """How many images are drawn from each source in n; None if every image comes once.

    Args:
        present: int [S], the numbers of the sources that have images, rising.
        counts: int [S], their numbers of images, n in all.
        weights: as `strata_of` takes them.

    Raises: ValueError if no source with images has a weight above 0.
    """
    if weights == "size" or len(present) == 1:
        return None
    images = int(counts.sum())
    share = np.ones(len(present)) if isinstance(weights, str) else np.array(weights)[present]
    if share.sum() <= 0:
        raise ValueError("no source with images has a weight above 0")
    exact = share / share.sum() * images
    draws: np.ndarray = np.maximum(np.floor(exact).astype(np.int64), share > 0)
    for place in np.argsort(draws - exact, kind="stable"):  # largest remainders first
        draws[place] += (draws.sum() < images) & (share[place] > 0)
    draws[np.argmax(draws)] -= draws.sum() - images  # sources of tiny weight took too many
    return None if (draws == counts).all() else draws


def sample_indices(
    seed: int, step: int, effective_batch: int, images: int, strata: Strata | Layout | None = None
) -> np.ndarray:
    """The images of one optimizer step, as a pure function of the seed and the step.

    Without `strata`, a run's images are one endless sequence: a permutation of all images for
    epoch 0, another for epoch 1, and so on. Batch `step` is [step * B, (step + 1) * B) of that
    sequence, so every image comes once an epoch whatever B is; B may be larger than n.

    With `strata`, an epoch is the T steps that begin in it, and each of them holds at most
    ceil(m / T) of the m images that a patient, or a series, has in the epoch. Every image still
    comes once an epoch, except that the epoch takes fewer than B images from the one after it,
    to fill its last step. See `_steps`.

    With a `Layout` the same holds, and no order of n images is kept; see dealing.py. Of
    `COMPUTED_FROM` images or more the permutations without `strata` are not kept, either.

    Args:
        seed: the run's seed, not negative.
        step: the optimizer step, from 0.
        effective_batch: B, images a step.
        images: n, images in the data set.
        strata: what is known of the images, see `strata_of`.

    Returns: row numbers, int64 [B]. The same arguments always give the same numbers.

    Raises: ValueError if `effective_batch` or `images` is below 1, or `seed` or `step` negative.
    """
    if effective_batch < 1 or images < 1:
        raise ValueError(f"cannot draw a batch of {effective_batch} from {images} images")
    if seed < 0 or step < 0:
        raise ValueError(f"seed {seed} and step {step} must not be negative")
    if isinstance(strata, Layout):
        return strata.step(seed, step, effective_batch)
    if strata is not None:
        passes = math.ceil(effective_batch / images)
        epoch = step * effective_batch // (images * passes)
        first = _first_step(epoch, effective_batch, images * passes)
        return _steps(strata, seed, epoch, effective_batch)[step - first].copy()
    return _stream(seed, "order of images", step * effective_batch, effective_batch, images)


def _stream(seed: int, purpose: str, start: int, count: int, images: int) -> np.ndarray:
    """A piece of an endless sequence of permutations, int64 [count]."""
    stop, parts = start + count, []
    for epoch in range(start // images, (stop - 1) // images + 1):
        first = epoch * images
        begin, end = max(start - first, 0), min(stop - first, images)
        if images >= COMPUTED_FROM:
            parts.append(permuted(np.arange(begin, end), images, seed, epoch, purpose))
        else:
            parts.append(_epoch(seed, epoch, images, purpose)[begin:end])
    return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch that crosses the end of an epoch needs two
def _epoch(seed: int, epoch: int, images: int, purpose: str) -> np.ndarray:
    """The order of all images in one epoch, int64 [images], read-only."""
    order = generator(seed, epoch, purpose).permutation(images)
    order.flags.writeable = False
    return order


def _first_step(epoch: int, effective_batch: int, images: int) -> int:
    """The first step that begins in an epoch (or after it, if none does)."""
    return -(-epoch * images // effective_batch)


@lru_cache(maxsize=2)
def _steps(strata: Strata, seed: int, epoch: int, effective_batch: int) -> np.ndarray:
    """The images of all steps that begin in an epoch, int64 [T, B].

    The epoch's images are laid in a row with those of a patient, and of a series, beside each
    other, and dealt out to the T steps in turn, as cards are. Of m neighbours in the row each step
    gets floor(m / T) or ceil(m / T), that is, none or one if m <= T.

    T * B images are needed. Images that the step before the epoch took ahead are left out, and the
    last step's share of the next epoch is added; both are spread evenly over the patients.
    """
    images = len(strata.rows)
    length = images * math.ceil(effective_batch / images)
    first, after = (_first_step(e, effective_batch, length) for e in (epoch, epoch + 1))
    counts = _counts(strata, seed, epoch, length)
    counts -= _ahead(strata, seed, epoch, effective_batch, length)
    counts += _ahead(strata, seed, epoch + 1, effective_batch, length)
    rng = generator(seed, epoch, "order of strata")
    order = strata.order(rng)
    laid = np.repeat(order, counts[order])
    steps = laid.reshape(effective_batch, after - first).T
    steps = rng.permuted(steps[rng.permutation(len(steps))], axis=1)
    steps.flags.writeable = False
    return steps


def _counts(strata: Strata, seed: int, epoch: int, length: int) -> np.ndarray:
    """How often each image comes in an epoch of `length`, a multiple of n: int64 [n]."""
    images = len(strata.rows)
    if strata.draws is None:
        return np.full(images, length // images)
    counts = np.zeros(images, dtype=np.int64)
    for number, (draws, members) in enumerate(zip(strata.draws, strata.members, strict=True)):
        if draws:
            draws = int(draws) * (length // images)
            purpose = f"order of source {number}"
            drawn = _stream(seed, purpose, epoch * draws, draws, len(members))
            np.add.at(counts, members[drawn], 1)
    return counts


def _ahead(strata: Strata, seed: int, epoch: int, effective_batch: int, length: int) -> np.ndarray:
    """How often each image of an epoch is taken ahead, by the last step before it: int64 [n]."""
    taken = _first_step(epoch, effective_batch, length) * effective_batch - epoch * length
    counts = np.zeros(len(strata.rows), dtype=np.int64)
    if taken:
        rng = generator(seed, epoch, "images taken ahead")
        order = strata.order(rng)
        laid = np.repeat(order, _counts(strata, seed, epoch, length)[order])
        places = ((np.arange(taken) + rng.random()) * len(laid) / taken).astype(np.int64)
        np.add.at(counts, laid[places], 1)
    return counts
