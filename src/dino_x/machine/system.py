"""What some operating systems lack: locks of files, limits of processes, signals.

Linux is what DINO-X is tested on. On macOS and Windows it can be imported and can train; what a
system lacks is left out here, in one place.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

KIB = 1024


def lock_alone(descriptor: int) -> bool:
    """Lock an open file for this process alone, without waiting. False where another has it.

    A system without locks says True: nothing else can be known there.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def lock_shared(descriptor: int) -> None:
    """Lock an open file together with others, where the system and the file system have locks."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)


def peak_resident_bytes() -> float:
    """The most memory that this process held; 0 where that is not known."""
    if resource is None:
        return 0.0
    peak = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * KIB  # in KiB on Linux


def address_space_limit() -> float:
    """The bytes that ``ulimit -v`` allows; infinity without a limit."""
    if resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return float("inf") if limit == resource.RLIM_INFINITY else float(limit)


def page_bytes() -> int:
    """The size of a page of memory."""
    return 4096 if resource is None else resource.getpagesize()


def signals(names: Iterable[str]) -> tuple[Any, ...]:
    """Those of some signals that this system has, by their names."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def read_at(descriptor: int, length: int, start: int) -> bytes:
    """Up to ``length`` bytes of an open file from ``start``; the position of the file may move."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, length)
