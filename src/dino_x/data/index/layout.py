"""The order of images by patient and series, for very many at a time, as arrays.

Numbers of patients and series are given by first appearance: keys are salted hashes, and nothing
may sort by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from dino_x.data.image import MAX_IMAGES
from dino_x.randomness import generator

# Chunks of whole patients at most, see `loading/dealing.py`. With fewer patients than that, each is
# a chunk of its own.
MOST_CHUNKS = 2**17

_AT_ONCE = 2**20
_MOST_IN_A_FILE = MAX_IMAGES + 1

_MIX = np.uint64(0x9E3779B97F4A7C15)


def keys_of_texts(texts: pa.Array) -> np.ndarray:
    """64 bits that two texts share if they are equal, uint64 [n]; 0 for one that is missing.

    They are those of this process. Among 10^8 texts two others share them with a chance of 3e-4.
    """
    encoded = texts.dictionary_encode()
    known = [hash(text) for text in encoded.dictionary.to_pylist()]
    keys = np.array([*known, 0], np.int64).view(np.uint64)
    return keys[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)]


def by_first_appearance(keys: np.ndarray) -> np.ndarray:
    """Numbers from 0 for keys, in the order in which they first appear, int32 or int64 [n]."""
    return pa.array(keys).dictionary_encode().indices.to_numpy()


def groups_of(
    patient: np.ndarray, series: np.ndarray, file_begins: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The patient and the series of each image, as numbers by first appearance, [n] each.

    The rule is that of `loading.sampler.strata_of`: where the patient is not known, a series is
    one; where that is not known, an image is. A file of several series is one series.

    Args:
        patient, series: the keys, uint64 [n], 0 where they are not known. They are overwritten,
            which saves memory.
        file_begins: bool [n], whether an image is the first of its file.
    """
    if not file_begins.all():
        _join_series_of_files(series, file_begins)
    for part in _parts(len(series)):
        missing = np.flatnonzero(series[part] == 0) + part.start
        series[missing] = _own(missing.astype(np.uint64) * np.uint64(2) + np.uint64(1))
        missing = np.flatnonzero(patient[part] == 0) + part.start
        patient[missing] = _mixed(series[missing], np.uint64(1))
        series[part] = _mixed(series[part], patient[part])
    return by_first_appearance(patient), by_first_appearance(series)


def _join_series_of_files(series: np.ndarray, file_begins: np.ndarray) -> None:
    """Give all images of a file of several series one key."""
    start = 0
    while start < len(series):
        stop = start + _AT_ONCE
        if stop < len(series):  # no file is cut
            more = np.flatnonzero(file_begins[stop:][:_MOST_IN_A_FILE])
            stop += int(more[0]) if len(more) else _MOST_IN_A_FILE
        part = series[start:stop]
        first = np.flatnonzero(file_begins[start:stop])
        file = np.cumsum(file_begins[start:stop]) - 1
        several = np.maximum.reduceat(part != part[first][file], first)[file]
        own = _own((first + start).astype(np.uint64) * np.uint64(2))
        part[several] = own[file[several]]
        start = stop


def _parts(length: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, length, _AT_ONCE))


def laid_out(patient: np.ndarray, series: np.ndarray, position: np.ndarray) -> np.ndarray:
    """All images with those of a patient beside each other, and of a series by position: int64."""
    return np.lexsort((position, series, patient))


def begins(numbers: np.ndarray) -> np.ndarray:
    """Whether a number differs from the one before it, bool [n]."""
    return np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]


def chunk_bounds(starts: np.ndarray, images: int, most: int = MOST_CHUNKS) -> np.ndarray:
    """Cut a row of whole patients into chunks at random places.

    Chunks of one size would fit into the steps of an epoch a whole number of times, and an image
    would meet those alone that lie at its own place in their chunks.

    Args:
        starts: int64 [G], where each patient begins; 0 first, rising.
        images: n, where the last one ends.
        most: chunks at most.

    Returns: int64 [C + 1], where each chunk begins, which is where a patient does, and n. The same
        arguments always give the same chunks.
    """
    if len(starts) > most:
        wanted = generator(0, most, "chunks").integers(0, images, most - 1)
        places = np.searchsorted(starts, wanted, side="right") - 1
        starts = np.unique(np.append(starts[places], 0))
    return np.append(starts, images).astype(np.int64)


def _own(numbers: np.ndarray) -> np.ndarray:
    """Keys that no text is likely to have, uint64 [n]."""
    return _mixed(numbers + np.uint64(1), _MIX)


def _mixed(one: np.ndarray, other: np.ndarray | np.uint64) -> np.ndarray:
    """Keys that depend on both, uint64 [n] (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (one ^ (one >> np.uint64(32))) * _MIX + other
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def source_order(laid: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The same order, but with the images of a source beside each other: int64 [n]."""
    return laid[np.argsort(source[laid], kind="stable")]


def in_bits(flags: np.ndarray | Sequence[bool]) -> np.ndarray:
    """Eight flags a byte, the first in the lowest bit, as `Chosen` takes them."""
    return np.packbits(np.asarray(flags, dtype=bool), bitorder="little")
