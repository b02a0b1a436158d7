"""Unpacked volumes, kept in memory for the slices that are read next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dino_x.data.image import Unreadable


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


@dataclass
class _Entry(Generic[T]):
    lock: threading.Lock = field(default_factory=threading.Lock)
    values: T | None = None
    reason: str | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.values is None else self.values.nbytes


class VolumeCache(Generic[T]):
    """The volumes used last, up to a limit in bytes; safe to use from several threads.

    Slices of a volume are read one after another when images are looked through for the first
    time. Unpacking a file again for each slice would take as many times as long as it has slices.
    Two threads that want the same volume wait for one unpacking. It is also remembered if a volume
    cannot be unpacked.

    Args:
        limit_bytes: limit of all volumes together; the newest one is kept whatever its size.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._entries: OrderedDict[Hashable, _Entry[T]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, which: Hashable, unpack: Callable[[], T]) -> T:
        """A volume, from `unpack` if it is not kept. Raises Unreadable if `unpack` does."""
        with self._lock:
            entry = self._entries.setdefault(which, _Entry())
            self._entries.move_to_end(which)
        with entry.lock:
            if entry.reason is not None:
                raise Unreadable(entry.reason)
            values = entry.values
            if values is None:
                try:
                    values = entry.values = unpack()
                except Unreadable as error:
                    entry.reason = str(error)
                    raise
        self._drop_oldest()
        return values

    def _drop_oldest(self) -> None:
        with self._lock:
            sizes = [entry.nbytes for entry in self._entries.values()]
            excess = sum(sizes) - self.limit_bytes
            for which, size in zip(list(self._entries)[:-1], sizes, strict=False):
                if excess <= 0 and len(self._entries) <= _MOST_ENTRIES:
                    break
                del self._entries[which]
                excess -= size


_MOST_ENTRIES = 256
