"""The headers of many files, in parallel."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import current_process, get_context
from pathlib import Path

from dino_x.data import identity, readers
from dino_x.data.files import Candidate
from dino_x.data.image import ImageRef, Reading, Unreadable

# Reading headers is Python's work, of which threads do no more than one at a time. Processes do,
# and each takes about a second to start.
PROCESSES_FROM = 3000
_PORTION = 64

_SAMPLE = 4096


@dataclass(frozen=True)
class Record:
    """What is known of one file: its images, or why it cannot be used.

    Attributes:
        path: as it was named or found.
        source: which of the sources it was found under.
        size: in bytes.
        mtime_ns: when it was last changed.
        refs: its images; none if it is unusable.
        unusable: the reason, a fixed phrase; None if it can be used.
        content: a salted hash of its size and of samples of its bytes: equal for equal files.
        label: the name of its class, if there are labels.
    """

    path: Path
    source: int
    size: int
    mtime_ns: int
    refs: tuple[ImageRef, ...] = ()
    unusable: str | None = None
    content: str | None = None
    label: str | None = None


def scan(
    files: Sequence[Candidate], reading: Reading, workers: int | None = None
) -> Generator[Record | None, None, None]:
    """Read the headers of some files.

    Args:
        files: the files.
        reading: what files leave open.
        workers: how many are read at a time; the number of cores if None.

    Yields: for each file, in order, its record, or None for a file that is no image and does not
        claim to be one.

    What other processes do not read, because they cannot be started (a script without
    ``if __name__ == "__main__"``) or were killed, is read in this one.
    """
    portions = [(files[i : i + _PORTION], reading) for i in range(0, len(files), _PORTION)]
    workers = min(workers or os.cpu_count() or 1, max(1, len(portions)))
    done = 0
    if workers > 1:
        executor = _executor(len(files), workers)
        try:
            for records in executor.map(_scan_portion, portions):
                done += 1
                yield from records
        except BrokenProcessPool:
            pass
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
    for portion in portions[done:]:
        yield from _scan_portion(portion)


def _executor(files: int, workers: int) -> Executor:
    if files < PROCESSES_FROM or current_process().daemon:  # which may have no children
        return ThreadPoolExecutor(workers)
    context = get_context("spawn")  # a fork would copy locks that other threads hold
    return ProcessPoolExecutor(workers, context, _start_process, (identity.salt(),))


def _start_process(salt: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that has started this
    identity.use_salt(salt)


def _scan_portion(portion: tuple[Sequence[Candidate], Reading]) -> list[Record | None]:
    files, reading = portion
    return [_scan_file(file, reading) for file in files]


def _scan_file(file: Candidate, reading: Reading) -> Record | None:
    refs: tuple[ImageRef, ...] = ()
    unusable: str | None = None
    try:
        if not (file.claims or readers.looks_like_image(file.path)):
            return None
        refs = tuple(readers.refs(file.path, reading))
    except Unreadable as reason:
        unusable = str(reason)
    if refs and file.source:
        for ref in refs:
            object.__setattr__(ref, "source", file.source)  # it is ours: no one has seen it yet
    content = content_key(file.path, file.size, _sampled)
    return Record(file.path, file.source, file.size, file.mtime_ns, refs, unusable, content)


def content_key(path: Path, size: int, parts: Callable[[int], list[tuple[int, int]]]) -> str | None:
    """A salted hash of a file's size and of parts of its bytes; None if it cannot be read.

    Args:
        path: the file.
        size: its size.
        parts: from the size to (begin, end) of the bytes that are read.
    """
    digest = hashlib.blake2b(key=identity.salt(), person=b"content", digest_size=10)
    digest.update(f"{size}:".encode())
    try:
        with path.open("rb", buffering=0) as file:
            for begin, end in parts(size):
                file.seek(begin)
                while begin < end and (data := file.read(min(end - begin, 2**20))):
                    digest.update(data)
                    begin += len(data)
    except OSError:
        return None
    return digest.hexdigest()


def _sampled(size: int) -> list[tuple[int, int]]:
    """The first, the middle and the last 4 KB: copies agree in them, and others hardly ever."""
    if size <= 3 * _SAMPLE:
        return [(0, size)]
    middle = (size - _SAMPLE) // 2
    return [(0, _SAMPLE), (middle, middle + _SAMPLE), (size - _SAMPLE, size)]


def whole(size: int) -> list[tuple[int, int]]:
    """All bytes of a file, as `content_key` takes them."""
    return [(0, size)]
