"""Which files there are below the paths that the user named.

Archives (tar and Parquet files) count too, and so do archives behind addresses, see `storage/urls`.

A file counts if its suffix claims an image, or if its first bytes are an image's, whatever its
name. All others (tables, texts, licences), hidden files and folders, and DICOMDIR files are passed
over, and counted (passed_over.py). A file that is named directly always counts.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from dino_x.data.index.passed_over import (
    BROKEN_LINK,
    DIRECTORY,
    HIDDEN,
    HIDDEN_FOLDER,
    SPECIAL,
)
from dino_x.data.storage.archives import Archive, address, is_remote
from dino_x.data.storage.listing import is_archive
from dino_x.data.storage.urls import expand, find_archives, is_pattern
from dino_x.errors import UserError, nearest

# Suffixes of image formats that are read, and of some that are not: the latter are reported.
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".ima", ".npy"}
    | {".nii", ".gif", ".webp", ".jp2", ".j2k", ".mha", ".mhd", ".nrrd", ".nhdr", ".npz"}
    | {".mgz", ".mgh"}
)

# Threads that list folders. They wait for a disk or a network file system, not for a processor, so
# there may be more of them than cores.
_LISTERS = 8


@dataclass(frozen=True, order=True)
class Candidate:
    """A file that may be an image.

    Attributes:
        path: the file, as it was named or found.
        source: the number of the named path that it was found under, from 0.
        claims: whether it claims to be an image, by its suffix or because it was named; if it is
            none, that is reported.
        size: its size in bytes; 0 if it is not known.
        mtime_ns: when it was last changed.
        etag: how an object store identifies its state.
    """

    path: Path
    source: int
    claims: bool = True
    size: int = 0
    mtime_ns: int = 0
    etag: str | None = None

    @property
    def is_archive(self) -> bool:
        """Whether it holds many images, by its suffix."""
        return is_archive(self.path.name)


@dataclass
class _Folder:
    """The content of one folder: its files and its subfolders, sorted by name."""

    files: list[tuple[str, Candidate]]
    folders: list[Path]
    passed: Counter[str] = field(default_factory=Counter)


def find_files(
    paths: Sequence[Path],
    sources: Sequence[int] | None = None,
    passed: Counter[str] | None = None,
) -> list[Candidate]:
    """Find the files that may count, by the rule at the top; sorted by path, each real file once.

    Args:
        paths: folders, walked with all their subfolders, and files.
        sources: the number of each path as a source; 0, 1, ... if None.
        passed: what is passed over by its name is counted here.

    Raises: UserError for a path that does not exist.
    """
    found: dict[str, Candidate] = {}
    passed = Counter() if passed is None else passed
    with ThreadPoolExecutor(_LISTERS) as pool:
        for number, path in zip(sources or range(len(paths)), paths, strict=True):
            for real, file in _below(path, number, pool, passed):
                found[real] = min(file, found.get(real, file))
    return sorted(found.values())


def _below(
    path: Path, source: int, pool: Executor, passed: Counter[str]
) -> Iterable[tuple[str, Candidate]]:
    """(real path, file) of the files that one named path stands for."""
    if is_remote(path):
        return [(address(file.path), _of_archive(file, source)) for file in find_archives(path)]
    if path.is_dir():
        return _walk(path, source, lambda work, items: list(pool.map(work, items)), passed)
    files = [path] if path.exists() else _by_pattern(path)
    return [(os.path.realpath(file), _candidate(file, source, file.stat())) for file in files]


def _of_archive(archive: Archive, source: int) -> Candidate:
    return Candidate(archive.path, source, True, archive.size, archive.mtime_ns, archive.etag)


def _by_pattern(path: Path) -> list[Path]:
    """The files that a pattern such as ``ct-{000..099}.tar`` names. Raises UserError if none."""
    if not is_pattern(str(path)):
        raise UserError(f"{path} does not exist{_near(path)}")
    found: list[Path] = []
    for one in expand(str(path)):
        named = [Path(name) for name in sorted(glob.glob(one, recursive=True))]
        if not named:
            raise UserError(f"{one} does not exist{_near(Path(one))}")
        found += [name for name in named if name.is_file()]
    return found


def _walk(
    top: Path, source: int, each: Callable[..., list[_Folder]], passed: Counter[str]
) -> Iterable[tuple[str, Candidate]]:
    """(real path, file) of all files below a folder, level by level.

    A folder that is reached twice through links is walked once, by its shortest way. A folder that
    cannot be opened stands in place of its files, so that it is reported.
    """
    seen: set[tuple[int, int]] = set()
    level = [top]
    while level:
        new = []
        for folder in level:
            try:
                status = os.stat(folder)
            except OSError:  # it is gone meanwhile: listing it says so
                new.append(folder)
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                new.append(folder)
        level = []
        for listed in each(lambda folder: _list(folder, source), new):
            yield from listed.files
            passed.update(listed.passed)
            level += listed.folders


def _list(folder: Path, source: int) -> _Folder:
    """The content of a folder without hidden files, DICOMDIR, pipes and sockets."""
    listed = _Folder([], [])
    real = os.path.realpath(folder)
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return _Folder([(real, Candidate(folder, source))], [])
    for entry in found:
        name = entry.name
        if name.startswith("."):
            listed.passed[HIDDEN_FOLDER if entry.is_dir() else HIDDEN] += 1
            continue
        path = folder / name
        try:
            status = entry.stat()
        except OSError:  # a dangling link or a loop: reported if it claims to be an image
            if claims_image(name):
                listed.files.append((f"{real}/{name}", Candidate(path, source)))
            else:
                listed.passed[BROKEN_LINK] += 1
            continue
        if stat.S_ISDIR(status.st_mode):
            listed.folders.append(path)
        elif not stat.S_ISREG(status.st_mode):
            listed.passed[SPECIAL] += 1
        elif name.upper() == "DICOMDIR":
            listed.passed[DIRECTORY] += 1
        else:
            where = os.path.realpath(path) if entry.is_symlink() else f"{real}/{name}"
            listed.files.append(
                (where, _candidate(path, source, status, claims=claims_image(name)))
            )
    return listed  # pipes and sockets never count: opening one may block


def _candidate(
    path: Path, source: int, status: os.stat_result, *, claims: bool = True
) -> Candidate:
    return Candidate(path, source, claims, status.st_size, status.st_mtime_ns)


def claims_image(name: str) -> bool:
    """Whether a file says by its suffix that it is an image."""
    name = name.lower()
    return os.path.splitext(name)[1] in IMAGE_SUFFIXES or name.endswith(".nii.gz")


def _near(path: Path) -> str:
    """A hint at a file with a similar name beside a path that is missing."""
    try:
        return nearest(path.name, (sibling.name for sibling in path.parent.iterdir()))
    except OSError:
        return ""
