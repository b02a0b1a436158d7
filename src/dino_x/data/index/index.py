"""The images to train on, and the files that are left out: from files, folders and indexes."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dino_x.config.options import WindowOptions
from dino_x.data.image import DEFAULT, ImageRef, Reading, Unreadable
from dino_x.data.index.catalog import Update, folder_of, is_index, update
from dino_x.data.index.conditions import columns_of, select
from dino_x.data.index.large import index_of, open_large
from dino_x.data.index.listed import (
    Index,
    Skipped,
    check_share,
    listed,
    nothing_left,
    reasons_of,
    remarks_on,
)
from dino_x.data.index.making_rows import is_picture
from dino_x.data.index.rows import Rows
from dino_x.data.index.table import read_facts
from dino_x.data.preparation import shows_grey
from dino_x.data.readers import registry
from dino_x.data.readers.decoding import Decoding
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.listing import is_archive
from dino_x.data.storage.member import any_remote, as_path, at_hand
from dino_x.data.windowing import BYTE_WINDOW, window_of
from dino_x.errors import UserError

# With verify="auto": up to this many images are decoded once before training starts.
VERIFY_UP_TO = 10_000

LOOKED_FOR = (
    "looked for PNG, JPEG, TIFF, DICOM, NIfTI, NRRD, MetaImage, MGH and NumPy in all subfolders,"
    " and in .tar and .parquet archives (compressed tars have to be unpacked)"
)

_WAITING_THREADS = 32
GREY_SAMPLE = 64  # images that are looked at
_PLAIN_SAMPLE = 16


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
    large, notes = None, list[str]()
    if kept_in is None and verify != "all":
        large, notes = open_large(paths, on_progress)
    if large is not None:
        index, files, unlisted = index_of(large, take, where)
    else:
        found = update(
            paths,
            reading=reading,
            kept_in=kept_in,
            must_keep=False,
            workers=workers,
            on_progress=on_progress,
        )
        index, files, unlisted = _index_of(found, take, where), len(found.table.records), 0
    if not files:
        raise UserError(f"no images in {listed(paths)}: {LOOKED_FOR}")
    if verify == "all" or (verify == "auto" and len(index) <= VERIFY_UP_TO):
        _leave_out_broken(index, decoding or Decoding(), workers, on_progress)
    index.skipped.sort(key=lambda skip: skip.path)
    check_share(index, paths, files, unlisted)
    index.notes = [*notes, *index.notes, *remarks_on(index.rows)]
    return index


def _index_of(found: Update, take: Sequence[str], where: str | None) -> Index:
    """The images to train on and the files that are left out, unless it is for their content."""
    skipped = [
        Skipped(record.path, record.unusable)
        for record in found.table.records
        if record.unusable is not None
    ]
    rows, left_out = _taken(_wanted(found, where), take, where)
    counts = dict(Counter(str(ref.kind) for ref in left_out).most_common())
    if left_out and not rows:
        raise nothing_left(counts)
    skipped += reasons_of(left_out)
    reports = sum(record.holds_no_image for record in found.table.records)
    passed = found.table.passed_over
    return Index(rows, skipped, list(found.notes), counts, reports, passed)


def _taken(
    rows: list[ImageRef], take: Sequence[str], where: str | None
) -> tuple[list[ImageRef], list[ImageRef]]:
    """The images to train on, and those of kinds that are left out by default."""
    chosen = where is not None and "kind" in columns_of(where)
    if chosen or "all" in take:
        return rows, []
    left = [ref for ref in rows if ref.kind is not None and ref.kind not in take]
    return [ref for ref in rows if ref.kind is None or ref.kind in take], left


def _leave_out_broken(
    index: Index,
    decoding: Decoding,
    workers: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Decode all images, and take those of files out that cannot be decoded."""
    broken, blank = _broken(index.rows, decoding, workers, on_progress)
    index.damaged = [row for row in index.rows if row.path in broken]
    index.rows = [row for row in index.rows if row.path not in broken]
    index.skipped += broken.values()
    if blank:
        index.notes.append(f"{blank:,} images hold no finite value (NaN alone), so they are black")


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
            folders += read_facts(path).sources
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
    if not _all_pictures(rows):
        return False
    chosen = np.unique(np.linspace(0, len(rows) - 1, _PLAIN_SAMPLE).round().astype(int))
    decoding = decoding or Decoding()
    return all(_row_is_plain(decoding, rows[i], windows) for i in chosen)


def _all_pictures(rows: Sequence[ImageRef]) -> bool:
    if isinstance(rows, Rows):
        return rows.all_pictures
    return all(is_picture(row.path) for row in rows)


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
