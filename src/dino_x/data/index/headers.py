"""The headers of many files, read in parallel."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import current_process, get_context
from pathlib import Path

from dino_x.data import identity
from dino_x.data.image import WITHOUT_IMAGE, ImageRef, Reading, Unreadable
from dino_x.data.index.finding import Candidate, claims_image
from dino_x.data.index.passed_over import HIDDEN, suffix_of
from dino_x.data.readers import registry
from dino_x.data.readers.quiet import quiet
from dino_x.data.readers.several_files import values_in, with_values
from dino_x.data.storage.archives import Archive, is_remote
from dino_x.data.storage.listing import members
from dino_x.data.storage.member import Member, size_of
from dino_x.data.storage.tars import NO_TAR
from dino_x.machine.child_processes import without_main

# Reading headers is work of the interpreter, which threads do only one at a time. From this many
# files on processes are used, each of which takes about a second to start.
PROCESSES_FROM = 6000
_PORTION = 64

# Archives of object stores that are looked through at a time: they are waited for.
_REMOTE_ARCHIVES = 16
_USUAL_BYTES = 100_000  # of an image in an archive: tells about how many there are

_SAMPLE = 4096

NO_IMAGES = "no images in it"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one file: its images, or why it cannot be used.

    Attributes:
        path: the file, as it was named or found; a `Member` if it lies in an archive.
        source: the number of the source that it was found under.
        size: its size in bytes; with that of the file of its values, if it is a header alone.
        mtime_ns: when it, or its archive, was last changed; for a header with a file of values
            the sum of both times, see `several_files.state_of`.
        refs: its images; none if it is unusable.
        unusable: the reason why it cannot be used, a fixed phrase; None if it can be used.
        content: a salted hash of its size and of samples of its bytes: equal for equal files.
        label: the name of its class, if there are labels.
        etag: how an object store identifies its state.
    """

    path: Path
    source: int
    size: int
    mtime_ns: int
    refs: tuple[ImageRef, ...] = ()
    unusable: str | None = None
    content: str | None = None
    label: str | None = None
    etag: str | None = None

    @property
    def holds_no_image(self) -> bool:
        """Whether the file is whole and no image, such as a report."""
        return self.unusable is not None and self.unusable.startswith(WITHOUT_IMAGE)

    @property
    def format(self) -> str | None:
        """The file's format; None if it is not known, as it cannot be used."""
        return self.refs[0].format if self.refs else None

    @property
    def file(self) -> Archive:
        """The file on a disk or in a store that holds it, in the state in which it was read."""
        if isinstance(self.path, Member):
            return self.path.archive
        return Archive(self.path, self.size, self.mtime_ns, self.etag)


@dataclass(frozen=True)
class Scanned:
    """What was found in one file or archive.

    Attributes:
        records: a record of each image file; none for a file that is no image.
        passed: how many files are no images, by suffix, see passed_over.py.
    """

    records: list[Record]
    passed: Counter[str] = field(default_factory=Counter)


def scan(
    files: Sequence[Candidate], reading: Reading, workers: int | None = None
) -> Generator[Scanned, None, None]:
    """Read the headers of some files.

    Args:
        files: the files.
        reading: what the user says of files that do not say it themselves.
        workers: how many are read at a time; the number of cores if None.

    Yields: for each file, in order, its record; for an archive a record of each image file in it;
        no record for a file that is no image and does not claim to be one.

    Files that other processes do not read, because they cannot be started or were killed, are read
    in this one.
    """
    remote = any(is_remote(file.path) for file in files)
    portions = [(portion, reading) for portion in _portions(files)]
    workers = workers or os.cpu_count() or 1
    if remote:
        workers = max(workers, _REMOTE_ARCHIVES)
    workers = min(workers, max(1, len(portions)))
    done = 0
    if workers > 1:
        executor = _executor(0 if remote else _images(files), workers)
        try:
            with without_main():
                results = executor.map(_scan_portion, portions)
            for records in results:
                done += 1
                yield from records
        except BrokenProcessPool:
            pass
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
    for portion in portions[done:]:
        yield from _scan_portion(portion)


def _portions(files: Sequence[Candidate]) -> list[Sequence[Candidate]]:
    """Split files into portions of one task each: an archive alone, other files 64 at a time."""
    portions: list[Sequence[Candidate]] = []
    start = 0
    for stop in range(1, len(files) + 1):
        ends = stop == len(files) or files[stop].is_archive or files[stop - 1].is_archive
        if ends or stop - start == _PORTION:
            portions.append(files[start:stop])
            start = stop
    return portions


def _images(files: Sequence[Candidate]) -> int:
    """About how many image files there are, including those in archives."""
    return sum(file.size // _USUAL_BYTES if file.is_archive else 1 for file in files)


def _executor(files: int, workers: int) -> Executor:
    if files < PROCESSES_FROM or current_process().daemon:  # which may have no children
        return ThreadPoolExecutor(workers)
    context = get_context("spawn")  # a fork would copy locks that other threads hold
    return ProcessPoolExecutor(workers, context, _start_process, (identity.salt(),))


def _start_process(salt: bytes) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    identity.use_salt(salt)


def _scan_portion(portion: tuple[Sequence[Candidate], Reading]) -> list[Scanned]:
    files, reading = portion
    with quiet():  # once, and not for each file
        return [_scan(file, reading) for file in files]


def _scan(file: Candidate, reading: Reading) -> Scanned:
    if file.is_archive:
        return _scan_archive(file, reading)
    records = _scan_file(file, file.path, reading)
    return Scanned(records, Counter() if records else Counter([suffix_of(file.path.name)]))


def _scan_archive(file: Candidate, reading: Reading) -> Scanned:
    """Read the headers in an archive.

    The archive itself is recorded if it is damaged, or if it was named and has no images; one that
    was not named and has none is passed over. Of several members of one name the last counts, as
    it does when a tar is unpacked.
    """
    archive = Archive(file.path, file.size, file.mtime_ns, file.etag)
    found: dict[str, list[Record]] = {}
    passed: Counter[str] = Counter()
    unusable: str | None = None
    try:
        for member in members(archive):
            name = member.name_inside
            if _is_passed_over(name):
                passed[HIDDEN] += 1
                continue
            claims = claims_image(name) or (member.row_group >= 0 and file.claims)
            inside = replace(file, claims=claims, size=size_of(member))
            found[name] = _scan_file(inside, member, reading)
            if not found[name]:
                passed[suffix_of(name)] += 1
    except Unreadable as reason:
        unusable = str(reason)
    records = [record for of_name in found.values() for record in of_name]
    if unusable is None and not records and file.claims:
        unusable = NO_IMAGES
    told = unusable is not None and unusable.startswith(("truncated", NO_TAR))
    if unusable is not None and (file.claims or records or told):
        state = (file.size, file.mtime_ns)
        records.append(Record(file.path, file.source, *state, (), unusable, etag=file.etag))
    if not records:
        return Scanned([], Counter([suffix_of(file.path.name)]))
    return Scanned(records, passed)


def _is_passed_over(name: str) -> bool:
    """Whether a member is hidden, lies in a hidden folder, or is a DICOMDIR."""
    parts = name.split("/")
    return parts[-1].upper() == "DICOMDIR" or any(part.startswith(".") for part in parts)


def _scan_file(file: Candidate, path: Path, reading: Reading) -> list[Record]:
    """Read the header of a file; no record if it is no image and does not claim to be one."""
    refs: tuple[ImageRef, ...] = ()
    unusable: str | None = None
    try:
        if not (file.claims or registry.looks_like_image(path)):
            return []
        refs = tuple(registry.refs(path, reading))
    except Unreadable as reason:
        unusable = str(reason)
    kind = refs[0].format if refs else None
    content = None if is_remote(path) else content_key(path, kind, _sampled)
    if isinstance(path, Member):
        path = path.holding(None)
    on_disk = not (isinstance(path, Member) or is_remote(path))
    state = with_values((file.size, file.mtime_ns), path, kind)
    for ref in refs:  # no one else has seen these yet, so they may be changed
        object.__setattr__(ref, "source", file.source)
        object.__setattr__(ref, "path", path)
        object.__setattr__(ref, "state", state if on_disk else None)
    return [Record(path, file.source, *state, refs, unusable, content)]


def content_key(
    path: Path, format: str | None, parts: Callable[[int], list[tuple[int, int]]]
) -> str | None:
    """A salted hash of a file's size and of parts of its bytes; None if it cannot be read.

    A header whose values lie in another file counts with that file.

    Args:
        path: the file.
        format: of the file, if it is known.
        parts: a function from the size to the (begin, end) of the bytes that are read.
    """
    digest = hashlib.blake2b(key=identity.salt(), person=b"content", digest_size=10)
    try:
        values = values_in(path, format)
        for one in (path,) if values is None else (path, values):
            bytes_of_it = size_of(one)
            digest.update(f"{bytes_of_it}:".encode())
            _update(digest, one, parts(bytes_of_it))
    except (OSError, Unreadable):
        return None
    return digest.hexdigest()


def _update(digest: hashlib.blake2b, path: Path, parts: list[tuple[int, int]]) -> None:
    with path.open("rb", buffering=0) as file:
        for begin, end in parts:
            file.seek(begin)
            while begin < end and (data := file.read(min(end - begin, 2**20))):
                digest.update(data)
                begin += len(data)


def _sampled(size: int) -> list[tuple[int, int]]:
    """The first, the middle and the last 4 KB: different files hardly ever agree in them."""
    if size <= 3 * _SAMPLE:
        return [(0, size)]
    middle = (size - _SAMPLE) // 2
    return [(0, _SAMPLE), (middle, middle + _SAMPLE), (size - _SAMPLE, size)]


def whole(size: int) -> list[tuple[int, int]]:
    """All bytes of a file, as `content_key` takes them."""
    return [(0, size)]
