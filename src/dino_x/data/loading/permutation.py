"""A permutation of very many numbers that is computed where it is asked for, and never stored.

It is a Feistel network: a number is cut into two halves of bits, and each half in turn is changed
by a function of the other (xor), which can be undone whatever the function is. So it is a bijection
of 0 to 2^k - 1. What falls beyond the n numbers that are wanted is put in again until it falls
within them ("cycle walking"), which makes it a bijection of 0 to n - 1; on average that takes less
than two rounds, as 2^k < 2n.

Sources: Luby and Rackoff 1988; Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dino_x.randomness import generator

ROUNDS = 8
MOST = 2**62

# Of the finalizer of splitmix64, which spreads each bit over all (Steele et al. 2014).
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permuted(places: np.ndarray, length: int, seed: int, epoch: int, purpose: str) -> np.ndarray:
    """Where a permutation of `length` numbers takes some of them.

    Args:
        places: numbers from 0 to `length` - 1, int64 [m].
        length: n, from 1 to 2^62.
        seed, epoch, purpose: which permutation, as `randomness.generator` takes them.

    Returns: int64 [m]. All n numbers are taken to all n numbers, each to another one.

    Raises: ValueError for a length out of range.
    """
    if not 1 <= length <= MOST:
        raise ValueError(f"a permutation of {length} numbers: it must be 1 to 2^62")
    bits = (length - 1).bit_length()
    keys = _keys(seed, epoch, purpose)
    values = _network(np.asarray(places).astype(np.uint64), bits, keys)
    outside = np.flatnonzero(values >= length)
    while len(outside):
        values[outside] = _network(values[outside], bits, keys)
        outside = outside[values[outside] >= length]
    return values.astype(np.int64)


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int, purpose: str) -> tuple[np.uint64, ...]:
    drawn = generator(seed, epoch, purpose).integers(0, 2**64, ROUNDS, dtype=np.uint64)
    return tuple(np.uint64(key) for key in drawn)


def _network(values: np.ndarray, bits: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    """A bijection of the numbers of so many bits, uint64 [m]."""
    low_bits = bits // 2
    high_bits = bits - low_bits
    shift = np.uint64(low_bits)
    low_mask, high_mask = np.uint64(2**low_bits - 1), np.uint64(2**high_bits - 1)
    low, high = values & low_mask, values >> shift
    for number, key in enumerate(keys):
        if number % 2:
            low = low ^ (_mixed(high ^ key) & low_mask)
        else:
            high = high ^ (_mixed(low ^ key) & high_mask)
    return (high << shift) | low


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))
