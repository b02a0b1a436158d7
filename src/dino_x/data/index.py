"""Which images there are: folders are walked, headers read, and what is unreadable is listed.

Which files count: those whose suffix claims an image, and those whose first bytes are an image's,
whatever they are called. All others (tables, texts, licences), hidden files and folders, and
DICOMDIR files are passed over in silence. A file that is named directly always counts.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from dino_x.data import readers
from dino_x.data.image import ImageRef, Unreadable
from dino_x.errors import UserError, nearest

# Image formats that are read, and some that are not yet: these are reported, not passed over.
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".ima"}
    | {".nii", ".gif", ".webp", ".jp2", ".j2k", ".mha", ".mhd", ".nrrd", ".npy"}
)

# With verify="auto": up to this many images are decoded once before training starts.
VERIFY_UP_TO = 10_000

# More unreadable files than this share is not a broken file or two: the data are not what the
# user believes they are.
UNREADABLE_SHARE = 0.1

T = TypeVar("T")

_GREY_SAMPLE = 64
_GREY_TOLERANCE = 2 / 255  # of the window: what the colour conversion of JPEG leaves of a grey


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and why."""

    path: Path
    reason: str


@dataclass
class Index:
    """The images to train on, in an order that is the same on every machine."""

    rows: list[ImageRef]
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def largest_side(self) -> int:
        """The largest height or width of any image, in pixels."""
        return max(max(row.height, row.width) for row in self.rows)


def build_index(
    paths: Sequence[Path],
    *,
    verify: str = "auto",
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Find every image below `paths`.

    Args:
        paths: folders, walked recursively, and files.
        verify: "headers" reads headers only; "all" also decodes every image once, which finds
            truncated files; "auto" is "all" up to `VERIFY_UP_TO` images.
        workers: threads; the number of cores if None.
        on_progress: called with (done, total): once through all files, then once through all
            images if they are verified.

    Returns: images sorted by path and frame, each file once; and what was left out.

    Raises:
        UserError: a path that does not exist, nothing to read, or more than 1 in 10 unreadable.
        ValueError: unknown `verify`.
    """
    if verify not in ("auto", "all", "headers"):
        raise ValueError(f"verify is '{verify}'; known are auto, all, headers")
    paths = [Path(path) for path in paths]
    files = find_files(paths)
    if not files:
        raise UserError(
            f"no images in {_listed(paths)}: looked for PNG, JPEG, TIFF and DICOM in all subfolders"
        )
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        found = list(_counted(pool.map(_refs_of, files), len(files), on_progress))
        rows = [row for result in found if isinstance(result, list) for row in result]
        skipped = [result for result in found if isinstance(result, Skipped)]
        if verify == "all" or (verify == "auto" and len(rows) <= VERIFY_UP_TO):
            broken: dict[Path, Skipped] = {}
            for result in _counted(pool.map(_verified, rows), len(rows), on_progress):
                if result is not None:
                    broken.setdefault(result.path, result)
            rows = [row for row in rows if row.path not in broken]
            skipped = sorted([*skipped, *broken.values()], key=lambda skip: skip.path)
    _check_share(paths, files, rows, skipped)
    return Index(rows, skipped)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files that count, by the rule at the top; sorted by path, each real file once.

    Raises: UserError for a path that does not exist.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist{_near(path)}")
        for file in _walk(path) if path.is_dir() else [path]:
            real = os.path.realpath(file)
            found[real] = min(file, found.get(real, file))
    return sorted(found.values())


def write_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Write what was left out as a table of `path,reason`."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows([skip.path, skip.reason] for skip in skipped)


def is_grey(rows: Sequence[ImageRef]) -> bool:
    """Whether the images are grey: one channel, or three that are equal.

    Looks at up to 64 images evenly spread over `rows`; unreadable ones have no say.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, _GREY_SAMPLE).round().astype(int))
    return all(_row_is_grey(rows[i]) for i in chosen)


def _row_is_grey(row: ImageRef) -> bool:
    try:
        image = readers.read(row)
    except Unreadable:
        return True
    if len(image.pixels) == 1:
        return True
    low, high = image.window
    return bool(np.ptp(image.pixels, axis=0).max() <= _GREY_TOLERANCE * (high - low))


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder that count; a folder reached twice through links is walked once.

    A folder that cannot be opened is given in place of its files, so that it is reported.
    """
    seen: set[tuple[int, int]] = set()
    closed: list[Path] = []

    def note(error: OSError) -> None:
        closed.append(Path(error.filename))

    for root, folders, names in os.walk(folder, followlinks=True, onerror=note):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(root, name)
            if not name.startswith(".") and name.upper() != "DICOMDIR" and _counts(file):
                yield file
    yield from closed


def _counts(file: Path) -> bool:
    """The rule at the top for one file. Pipes and sockets never count: opening one may block."""
    if file.suffix.lower() in IMAGE_SUFFIXES or file.name.lower().endswith(".nii.gz"):
        return file.is_file() or not file.exists()  # a dangling link is reported
    return file.is_file() and readers.looks_like_image(file)


def _refs_of(path: Path) -> list[ImageRef] | Skipped:
    try:
        return readers.refs(path)
    except Unreadable as unreadable:
        return Skipped(path, str(unreadable))


def _verified(row: ImageRef) -> Skipped | None:
    try:
        readers.read(row)
    except Unreadable as unreadable:
        return Skipped(row.path, str(unreadable))
    return None


def _counted(
    results: Iterable[T], total: int, on_progress: Callable[[int, int], None] | None
) -> Iterator[T]:
    for done, result in enumerate(results, start=1):
        if on_progress is not None:
            on_progress(done, total)
        yield result


def _check_share(
    paths: Sequence[Path], files: list[Path], rows: list[ImageRef], skipped: list[Skipped]
) -> None:
    if not skipped:
        return
    first = f"{skipped[0].path}: {skipped[0].reason}"
    if not rows:
        raise UserError(f"no readable image among {len(files)} files in {_listed(paths)}; {first}")
    if len(skipped) > UNREADABLE_SHARE * len(files):
        raise UserError(
            f"{len(skipped)} of {len(files)} image files are unreadable, more than 1 in 10: "
            f"move them away or name the folders that hold images; {first}"
        )


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(str(path) for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"


def _near(path: Path) -> str:
    """A hint at what lies beside a path that is missing."""
    try:
        return nearest(path.name, (sibling.name for sibling in path.parent.iterdir()))
    except OSError:
        return ""
