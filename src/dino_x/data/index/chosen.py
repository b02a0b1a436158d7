"""Some of very many numbers, a bit each: which is the k-th, and how many come before one.

Of 10^8 numbers this takes 14 MB. n numbers, m of them chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

_BITS = 512  # of a group whose number of chosen ones is kept
_AT_ONCE = 2**14  # numbers looked up at a time: 8 MB


class Chosen:
    """Some of the numbers from 0 to n - 1.

    Args:
        bits: uint8, 8 numbers a byte, the first in the lowest bit.
        length: n.
    """

    def __init__(self, bits: np.ndarray, length: int) -> None:
        groups = max(1, -(-len(bits) // (_BITS // 8)))
        missing = groups * (_BITS // 8) - len(bits)
        self.bits = np.append(bits, np.zeros(missing, np.uint8)) if missing else bits
        self.length = length
        counts = np.bitwise_count(self._groups).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray]) -> Chosen:
        """Take those that are True in bool arrays, one after another."""
        packed: list[np.ndarray] = []
        rest, length = np.zeros(0, bool), 0
        for piece in pieces:
            length += len(piece)
            piece = np.concatenate([rest, piece])
            whole = len(piece) // 8 * 8
            packed.append(np.packbits(piece[:whole], bitorder="little"))
            rest = piece[whole:]
        packed.append(np.packbits(rest, bitorder="little"))
        return cls(np.concatenate(packed), length)

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def _groups(self) -> np.ndarray:
        return self.bits.reshape(-1, _BITS // 8)

    def contains(self, numbers: np.ndarray) -> np.ndarray:
        """Whether each of some numbers is chosen, bool."""
        return (self.bits[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1 == 1

    def nth(self, which: np.ndarray) -> np.ndarray:
        """The number of the k-th chosen one, from 0, for each k: int64."""
        return _in_parts(self._nth, which)

    def rank(self, numbers: np.ndarray) -> np.ndarray:
        """How many chosen ones are smaller than each of some numbers from 0 to n: int64."""
        return _in_parts(self._rank, numbers)

    def pieces(self, count: int = 2**20) -> Iterator[np.ndarray]:
        """Bool arrays of `count` numbers, the last one shorter: the opposite of `of`."""
        for start in range(0, self.length, count):
            size = min(count, self.length - start)
            bits = np.unpackbits(self.bits[start // 8 : (start + size + 7) // 8], bitorder="little")
            yield bits[:size].astype(bool)

    def _nth(self, which: np.ndarray) -> np.ndarray:
        group = np.searchsorted(self._before, which, side="right") - 1
        bits = np.unpackbits(self._groups[group], axis=1, bitorder="little")
        wanted = which - self._before[group] + 1
        return group * _BITS + (np.cumsum(bits, axis=1, dtype=np.int16) >= wanted[:, None]).argmax(
            1
        )

    def _rank(self, numbers: np.ndarray) -> np.ndarray:
        group = np.minimum(numbers // _BITS, len(self._groups) - 1)
        bits = np.unpackbits(self._groups[group], axis=1, bitorder="little")
        before = np.arange(_BITS) < (numbers - group * _BITS)[:, None]
        return self._before[group] + (bits * before).sum(axis=1, dtype=np.int64)


class Marked:
    """Numbers from 0 to n - 1, a bit each, that are marked one after another.

    Args:
        length: n.
    """

    def __init__(self, length: int) -> None:
        self._bits = np.zeros((length + 7) // 8, np.uint8)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def mark(self, numbers: np.ndarray | int) -> None:
        """Mark some numbers; those that are marked already do not count again."""
        new = np.unique(numbers)
        bits = (1 << (new & 7)).astype(np.uint8)
        new = self._bits[new >> 3] & bits == 0
        self._count += int(new.sum())
        np.bitwise_or.at(self._bits, np.unique(numbers) >> 3, bits)


def _in_parts(look_up, numbers: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Look up many numbers some at a time, so that memory stays small."""
    numbers = np.asarray(numbers, dtype=np.int64)
    starts = range(0, len(numbers), _AT_ONCE)
    found = [look_up(numbers[start : start + _AT_ONCE]) for start in starts]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
