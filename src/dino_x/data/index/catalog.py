"""Keeping an index up to date: only new and changed files are read, and little is ever lost."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from dino_x.data.identity import fingerprint
from dino_x.data.image import Reading, Unreadable
from dino_x.data.index.finding import Candidate, find_files
from dino_x.data.index.headers import Record, Scanned, scan
from dino_x.data.index.masks import mark_masks
from dino_x.data.index.patients import one_key_a_patient, remark_on_patients
from dino_x.data.index.table import Table, moved, read_table, write_table
from dino_x.data.readers.several_files import with_values
from dino_x.data.storage import row_groups, urls
from dino_x.data.storage.archives import is_remote, location, state_of
from dino_x.data.storage.member import Member, as_path, file_of
from dino_x.errors import UserError

SUFFIX = ".parquet"

# Seconds between two writings of what is known so far: a kill costs no more than that.
SAVE_EVERY = 30.0

Progress = Callable[[int, int], None]
Records = Mapping[Path, list[Record]]  # by the path of the file or archive


@dataclass(frozen=True)
class Update:
    """The result of `update`.

    Attributes:
        table: all files that count, sorted by path.
        read: how many files were read now.
        kept: how many files are as the index had them.
        gone: how many files of the index no longer exist.
        notes: sentences for the user.
    """

    table: Table
    read: int
    kept: int
    gone: int
    notes: tuple[str, ...] = ()


def update(
    paths: Sequence[Path],
    *,
    reading: Reading,
    kept_in: Path | None = None,
    must_keep: bool = True,
    workers: int | None = None,
    on_progress: Progress | None = None,
    label_of: Callable[[list[Path]], dict[Path, str]] | None = None,
) -> Update:
    """Find all images below some paths, with what an index already knows of them.

    Args:
        paths: folders, files and indexes (`.parquet`); the files of an index are not opened.
        reading: what the user says of files that do not say it themselves.
        kept_in: an index to continue: it is read if it is there, and written every half minute, at
            the end, and if this is interrupted. None keeps nothing.
        must_keep: whether it is an error if the index cannot be written; else it is a note.
        workers: number of headers read at a time; the number of cores if None.
        on_progress: called with (done, total) files.
        label_of: a function from all files to the classes of those that have one.

    Raises: UserError for a path that does not exist, an index that cannot be read or written.
    """
    before, passed_before, notes = _before(kept_in, reading)
    passed = _Passed(passed_before)
    sources, taken, files, salts = sources_of(paths, passed.of_files)
    if taken:
        there = {location(file_of(record.path)) for record in taken}
        files = [file for file in files if location(file.path) not in there]
    records: dict[Path, list[Record]] = {}
    for record in taken:
        records.setdefault(file_of(record.path), []).append(record)
    todo = []
    for file in files:
        old = before.pop(location(file.path), [])
        if old and all(_is_unchanged(record, file) for record in old):
            records[file.path] = [moved(record, file.path, file.source) for record in old]
            passed.keep(file)
        else:
            todo.append(file)
    kept, known = sum(map(len, records.values())) - len(taken), len(files) - len(todo)
    keeper = _Keeper(kept_in, Table(tuple(sources), [], reading, passed=passed.counts), must_keep)
    try:
        with closing(scan(todo, reading, workers)) as scanned:
            for done, found_in in enumerate(scanned, start=1):
                file = todo[done - 1]
                records[file.path] = found_in.records
                passed.add(file, found_in)
                if on_progress is not None:
                    on_progress(known + done, len(files))
                keeper.save_if_due(records)
    except BaseException:
        keeper.save(records, complete=False)
        raise
    found = sorted(chain.from_iterable(records.values()), key=lambda record: record.path)
    found = mark_masks(found)
    if label_of is not None:
        keeper.save(records, complete=False)  # labels may be wrong, and headers must not be lost
        labels = label_of([record.path for record in found if record.refs])
        found = [replace(record, label=labels.get(record.path)) for record in found]
    keeper.save({Path(): found}, complete=True)
    refuse_two_salts(found, sources, salts)
    found = one_key_a_patient(found)
    table = Table(tuple(sources), found, reading, passed=passed.counts)
    read = len(found) - kept - len(taken)
    gone = sum(map(len, before.values()))
    remark = remark_on_patients(found)
    remarks = () if remark is None else (remark,)
    return Update(table, read, kept, gone, (*notes, *keeper.notes, *remarks))


def _is_unchanged(record: Record, file: Candidate) -> bool:
    """Whether a file, or the archive that it lies in, is as it was when it was recorded.

    So must be the file of its values, if it is a header alone.
    """
    then, now = record.file, (file.size, file.mtime_ns)
    if not isinstance(record.path, Member):
        now = with_values(now, file.path, record.format)
    return (then.size, then.mtime_ns, then.etag) == (*now, file.etag)


def _before(
    kept_in: Path | None, reading: Reading
) -> tuple[dict[str, list[Record]], Mapping[str, Mapping[str, int]], list[str]]:
    """The files of an index by their location, what it passed over in archives, and notes.

    There are no files if it was made in another way; a note then says so.
    """
    if kept_in is None or not kept_in.exists():
        return {}, {}, []
    table = read_table(kept_in)
    again = "all files are read again"
    if table.salt != fingerprint():
        return {}, {}, [f"{kept_in} was made with another salt: {again}"]
    if table.reading != reading:
        return {}, {}, [f"{kept_in} was made with another slice axis, modality or axes: {again}"]
    records: dict[str, list[Record]] = {}
    for record in table.records:
        records.setdefault(location(file_of(record.path)), []).append(record)
    return records, table.passed, []


def sources_of(
    paths: Sequence[Path], passed: Counter[str] | None = None
) -> tuple[list[Path], list[Record], list[Candidate], list[str]]:
    """The folders that files lie in, the files of indexes among the paths, and all other files.

    The last is the fingerprint of the salt that keys of each folder's patients are made with.

    Args:
        paths: folders, files and indexes.
        passed: files that are passed over by their names, or by an index, are counted here.

    Raises: UserError for a path that does not exist, or an index that is unfinished or unreadable.
    """
    sources: list[Path] = []
    salts: list[str] = []
    taken: list[Record] = []
    others: list[Path] = []
    numbers: list[int] = []
    for path in paths:
        path = as_path(path)
        if not is_index(path):
            numbers.append(len(sources))
            others.append(path)
            sources.append(folder_of(path))
            salts.append(fingerprint())
            continue
        table = read_table(path)
        if not table.complete:
            raise UserError(f"{path} is unfinished: finish it with `dino-x index ... --out {path}`")
        taken += _numbered_from(len(sources), table.records)
        if passed is not None:
            passed.update(table.passed_over)
        sources += table.sources
        salts += [table.salt] * len(table.sources)
    return sources, taken, find_files(others, numbers, passed), salts


def refuse_two_salts(
    records: Sequence[Record], sources: Sequence[Path], salts: Sequence[str]
) -> None:
    """Refuse patients whose keys were made with different salts: one patient would be two.

    Args:
        records: all files.
        sources: the folders that `Record.source` is a number of.
        salts: the fingerprint of the salt of each folder.

    Raises: UserError, naming a folder of each.
    """
    known: dict[str, int] = {}
    for record in records:
        if any(ref.patient is not None for ref in record.refs):
            known.setdefault(salts[record.source], record.source)
    if len(known) > 1:
        first, second = (sources[number] for number in list(known.values())[:2])
        raise two_salts(first, second)


def two_salts(first: Path, second: Path) -> UserError:
    """The error for folders whose patients have keys of two salts."""
    return UserError(
        f"the patients of {first} and of {second} have keys that two users or machines made, so"
        " that the same patient would count as two, in training and in a split; make one index"
        " of both: dino-x index FOLDER FOLDER --out FILE"
    )


def is_index(path: Path) -> bool:
    """Whether a path is an index, or a Parquet file that is not one of images.

    Raises: UserError for a Parquet file that is neither.
    """
    return path.suffix == SUFFIX and path.is_file() and not holds_images(path)


def _numbered_from(first: int, records: list[Record]) -> list[Record]:
    """The records of an index whose sources come after `first` others."""
    if first == 0:
        return records
    return [moved(record, file_of(record.path), first + record.source) for record in records]


def folder_of(path: Path) -> Path:
    """The folder that the files of a path lie in, as an absolute path or an address."""
    if is_remote(path):
        return urls.folder_of(path)
    if not path.exists():
        return Path(os.path.abspath(urls.folder_of(path)))
    return Path(os.path.abspath(path if path.is_dir() else path.parent))


def holds_images(path: Path) -> bool:
    """Whether a Parquet file on a disk is an archive of images, and no index.

    Raises: UserError for one that is neither.
    """
    try:
        return not row_groups.layout(state_of(path)).index
    except Unreadable as reason:
        if str(reason) == row_groups.NO_IMAGES:
            raise UserError(
                f"{path} is neither an index made by `dino-x index` nor a Parquet file with a"
                " column of images (bytes, or a struct with bytes and path)"
            ) from None
        return False  # reading it as an index will say what is wrong


class _Passed:
    """Counts the files that are no images, see `Table.passed`.

    Args:
        before: the counts of an index that is continued: its archives are not opened again.
    """

    def __init__(self, before: Mapping[str, Mapping[str, int]]) -> None:
        self.before = before
        self.of_files: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {"": self.of_files}

    def keep(self, file: Candidate) -> None:
        """Take the counts of a file that has not changed."""
        where = location(file.path)
        if where in self.before:
            self.counts[where] = Counter(self.before[where])

    def add(self, file: Candidate, scanned: Scanned) -> None:
        """Count what was found in a file."""
        if scanned.passed:
            where = location(file.path) if file.is_archive and scanned.records else ""
            self.counts.setdefault(where, Counter()).update(scanned.passed)


class _Keeper:
    """Writes an index now and then, and notes once if it cannot."""

    def __init__(self, path: Path | None, table: Table, must: bool) -> None:
        self.path, self.table, self.must = path, table, must
        self.notes: list[str] = []
        self.due = time.monotonic() + SAVE_EVERY

    def save_if_due(self, records: Records) -> None:
        if time.monotonic() >= self.due:
            self.save(records, complete=False)
            self.due = time.monotonic() + SAVE_EVERY

    def save(self, records: Records, *, complete: bool) -> None:
        if self.path is None:
            return
        every = chain.from_iterable(records.values())
        kept = [replace(record, path=_whole(record.path)) for record in every]
        kept.sort(key=lambda record: (record.source, record.path))
        try:
            write_table(replace(self.table, records=kept, complete=complete), self.path)
        except UserError as error:
            if self.must:
                raise
            self.path = None
            self.notes.append(f"{error}: continuing without an index")


def _whole(path: Path) -> Path:
    """The absolute path of a file, or a member whose archive has an absolute path."""
    if isinstance(path, Member):
        return path.moved(as_path(location(path.archive.path)))
    return as_path(location(path))
