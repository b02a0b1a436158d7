"""The images to train on, and the files that are left out: from files, folders and indexes."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dino_x.config.options import WindowOptions
from dino_x.data.image import DEFAULT, ImageRef, Reading, Unreadable
from dino_x.data.index.catalog import Update, folder_of, is_index, update
from dino_x.data.index.conditions import columns_of, select
from dino_x.data.index.headers import Record
from dino_x.data.index.table import read_table
from dino_x.data.preparation import shows_grey
from dino_x.data.readers import registry
from dino_x.data.readers.decoding import Decoding
from dino_x.data.storage.archives import address, is_remote
from dino_x.data.storage.listing import is_archive
from dino_x.data.storage.member import any_remote, as_path, at_hand
from dino_x.data.windowing import BYTE_WINDOW, window_of
from dino_x.errors import UserError

# With verify="auto": up to this many images are decoded once before training starts.
VERIFY_UP_TO = 10_000

# If more than this share of files is unreadable, these are not a few broken files: the data are
# not what the user believes they are.
UNREADABLE_SHARE = 0.1

LEFT_OUT = "left out: "  # how the reason begins for images that are no view of anatomy

LOOKED_FOR = (
    "looked for PNG, JPEG, TIFF, DICOM, NIfTI and NumPy in all subfolders, and in .tar and .parquet"
    " archives (compressed tars have to be unpacked)"
)

_WAITING_THREADS = 32
GREY_SAMPLE = 64  # images that are looked at
_PLAIN_SAMPLE = 16
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class Skipped:
    """A file that is left out, and the reason why."""

    path: Path
    reason: str


@dataclass
class Index:
    """The images to train on, in an order that is the same on every machine.

    Attributes:
        rows: the images.
        skipped: the files that are left out.
        notes: sentences for the user.
        left_out: how many images of each kind are left out by default, see `image.KINDS`.
        without_image: how many files are whole and hold no image, such as reports.
        passed: how many files are no images, by suffix, see passed_over.py.
        damaged: the images that turned out not to be decodable, which ``skipped`` lists by file.
    """

    rows: list[ImageRef]
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    without_image: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    damaged: list[ImageRef] = field(default_factory=list)

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
    reading: Reading = DEFAULT,
    kept_in: Path | None = None,
    where: str | None = None,
    decoding: Decoding | None = None,
    take: Sequence[str] = (),
) -> Index:
    """Find every image below `paths` that is a view of anatomy.

    Args:
        paths: folders, walked recursively, files, and indexes made by `dino-x index`, whose files
            are not looked at again.
        verify: "headers" reads headers only; "all" also decodes every image once, which finds
            truncated files; "auto" is "all" up to `VERIFY_UP_TO` images.
        workers: threads that decode; the number of cores if None.
        on_progress: called with (done, total): once through all files, then once through all
            images if they are verified.
        reading: what the user says of files that do not say it themselves.
        kept_in: an index that is continued: files that it has are not opened again.
        where: a condition on the images, see `conditions.select`; None takes all.
        decoding: where images are decoded; in threads if None.
        take: kinds of images that are not left out, see `image.KINDS`; "all" is every kind. A
            condition that names the column `kind` decides for itself.

    Returns: the images sorted by path and frame, each file once; and the files left out.

    Raises:
        UserError: a path that does not exist, nothing to read, more than 1 in 10 unreadable, or
            a condition that is not understood or that no image meets.
        ValueError: unknown `verify`.
    """
    if verify not in ("auto", "all", "headers"):
        raise ValueError(f"verify is '{verify}'; known are auto, all, headers")
    paths = [Path(path) for path in paths]
    found = update(
        paths,
        reading=reading,
        kept_in=kept_in,
        must_keep=False,
        workers=workers,
        on_progress=on_progress,
    )
    files = [record.path for record in found.table.records]
    if not files:
        raise UserError(f"no images in {_listed(paths)}: {LOOKED_FOR}")
    skipped = [
        Skipped(record.path, record.unusable)
        for record in found.table.records
        if record.unusable is not None
    ]
    rows, left_out = _taken(_wanted(found, where), take, where)
    counts = dict(Counter(str(ref.kind) for ref in left_out).most_common())
    if left_out and not rows:
        raise UserError(f"no image is left to train on: left out are {in_words(counts)}")
    skipped += _reasons(left_out)
    damaged: list[ImageRef] = []
    blank = 0
    if verify == "all" or (verify == "auto" and len(rows) <= VERIFY_UP_TO):
        broken, blank = _broken(rows, decoding or Decoding(), workers, on_progress)
        damaged = [row for row in rows if row.path in broken]
        rows = [row for row in rows if row.path not in broken]
        skipped += broken.values()
    skipped.sort(key=lambda skip: skip.path)
    _check_share(paths, found.table.records, rows, skipped)
    reports = sum(record.holds_no_image for record in found.table.records)
    remarks = Counter(row.remark for row in rows if row.remark is not None)
    notes = [f"{count:,} images: {remark}" for remark, count in remarks.most_common()]
    if blank:
        notes.append(f"{blank:,} images hold no finite value (NaN alone), so they are black")
    passed = found.table.passed_over
    return Index(rows, skipped, [*found.notes, *notes], counts, reports, passed, damaged)


def _taken(
    rows: list[ImageRef], take: Sequence[str], where: str | None
) -> tuple[list[ImageRef], list[ImageRef]]:
    """The images to train on, and those of kinds that are left out by default."""
    chosen = where is not None and "kind" in columns_of(where)
    if chosen or "all" in take:
        return rows, []
    left = [ref for ref in rows if ref.kind is not None and ref.kind not in take]
    return [ref for ref in rows if ref.kind is None or ref.kind in take], left


def in_words(counts: Mapping[str, int]) -> str:
    """What is left out by default, and how to take it."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    return f"{kinds} images (data.take=[{','.join(counts)}] takes them)"


def _reasons(left_out: Sequence[ImageRef]) -> list[Skipped]:
    return list(dict.fromkeys(Skipped(ref.path, f"{LEFT_OUT}{ref.kind}") for ref in left_out))


def _broken(
    rows: Sequence[ImageRef],
    decoding: Decoding,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[Path, Skipped], int]:
    """Decode all images.

    Returns: the files of which an image cannot be decoded, and how many images hold no finite
        value.
    """
    broken: dict[Path, Skipped] = {}
    blank = 0
    threads = workers or os.cpu_count() or 1
    if any_remote(rows):  # most of them wait for the store
        threads = max(threads, _WAITING_THREADS)
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(pool.map(partial(_verified, decoding), rows), start=1):
            if on_progress is not None:
                on_progress(done, len(rows))
            if isinstance(result, Skipped):
                broken.setdefault(result.path, result)
            else:
                blank += not result
    return broken, blank


def _wanted(found: Update, where: str | None) -> list[ImageRef]:
    """The images that meet the condition, if there is one."""
    records = found.table.records
    rows = [ref for record in records for ref in record.refs]
    if where is None or not rows:
        return rows
    return select([record for record in records if record.refs], found.table.sources, where)


def folders_of(paths: Sequence[str | Path]) -> list[Path]:
    """The folders that images lie in: an index stands for those of its files.

    A path that is neither an index nor an archive stays as it is.
    """
    folders: list[Path] = []
    for path in map(as_path, paths):
        if is_index(path):
            folders += read_table(path).sources
        elif is_remote(path) or not path.exists():
            folders.append(folder_of(path))
        elif is_archive(path.name) and path.is_file():
            folders.append(path.parent)
        else:
            folders.append(path)
    return folders


def write_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Write the files that were left out as a table of `path,reason`."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows([skip.path, skip.reason] for skip in skipped)


def is_grey(rows: Sequence[ImageRef], decoding: Decoding | None = None) -> bool:
    """Whether the images are grey: one channel, or three that are equal.

    It looks at up to 64 images evenly spread over `rows`; unreadable ones do not count.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, GREY_SAMPLE).round().astype(int))
    decoding = decoding or Decoding()
    return all(_row_is_grey(decoding, rows[i]) for i in chosen)


def is_plain(
    rows: Sequence[ImageRef], windows: WindowOptions, decoding: Decoding | None = None
) -> bool:
    """Whether the images are 8-bit pictures whose values are taken as they are.

    Pillow and the processors of transformers read such a picture as we do. It looks at up to 16
    images evenly spread over `rows`; unreadable ones do not count.

    Args:
        rows: the images.
        windows: how values become [0, 1].
        decoding: where images are decoded; in threads if None.
    """
    if any(row.path.suffix.lower() not in _PICTURES for row in rows):
        return False
    chosen = np.unique(np.linspace(0, len(rows) - 1, _PLAIN_SAMPLE).round().astype(int))
    decoding = decoding or Decoding()
    return all(_row_is_plain(decoding, rows[i], windows) for i in chosen)


def _row_is_plain(decoding: Decoding, row: ImageRef, windows: WindowOptions) -> bool:
    try:
        return decoding.run(partial(_shows_bytes, windows), at_hand(row))
    except Unreadable:
        return True


def _shows_bytes(windows: WindowOptions, row: ImageRef) -> bool:
    return window_of(registry.read(row), windows) == BYTE_WINDOW


def _row_is_grey(decoding: Decoding, row: ImageRef) -> bool:
    try:
        return decoding.run(_shows_grey, at_hand(row))
    except Unreadable:
        return True


def _shows_grey(row: ImageRef) -> bool:
    image = registry.read(row)
    low, high = image.window
    return shows_grey(image.pixels, high - low)


def _verified(decoding: Decoding, row: ImageRef) -> Skipped | bool:
    """Why an image cannot be decoded, or whether it holds a finite value."""
    try:
        return decoding.run(_holds_values, at_hand(row))
    except Unreadable as unreadable:
        return Skipped(row.path, str(unreadable))


def _holds_values(row: ImageRef) -> bool:
    return bool(np.isfinite(registry.read(row).pixels).any())


def _check_share(
    paths: Sequence[Path],
    records: Sequence[Record],
    rows: list[ImageRef],
    skipped: list[Skipped],
) -> None:
    """Raise UserError if no image is left, or if too many files are damaged or unsupported."""
    other = {record.path for record in records if record.holds_no_image}
    broken = [
        skip for skip in skipped if skip.path not in other and not skip.reason.startswith(LEFT_OUT)
    ]
    if not rows:
        first = (broken or skipped)[0]
        raise UserError(
            f"no readable image among {len(records)} files in {_listed(paths)}; {first.path}:"
            f" {first.reason}"
        )
    files = len(records) - len(other)
    if len(broken) > UNREADABLE_SHARE * files:
        raise UserError(
            f"{len(broken)} of {files} image files are unreadable, more than 1 in 10: "
            f"move them away or name the folders that hold images; {broken[0].path}:"
            f" {broken[0].reason}"
        )


def _listed(paths: Sequence[Path]) -> str:
    names = ", ".join(address(path) for path in paths[:3])
    return names if len(paths) <= 3 else f"{names} and {len(paths) - 3} more"
