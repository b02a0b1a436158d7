"""The images of large indexes, which are read where they are needed and never as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_x.data.index.catalog import is_index, two_salts
from dino_x.data.index.conditions import columns_of
from dino_x.data.index.index_files import IndexFiles, passed_over, rows_in
from dino_x.data.index.listed import (
    LISTED_UP_TO,
    Index,
    Progress,
    Skipped,
    nothing_left,
    reasons_of,
)
from dino_x.data.index.rows import Rows, open_rows
from dino_x.data.storage.member import as_path
from dino_x.files import name_of

# Indexes of so many rows are not read as a whole: that would take 720 MB.
ROWS_FROM = 1_000_000


def is_large(paths: Sequence[Path]) -> bool:
    """Whether some paths are indexes alone, and have many rows. Raises UserError."""
    indexes = bool(paths) and all(map(is_index, paths))
    return indexes and sum(map(rows_in, paths)) >= ROWS_FROM


def open_large(
    paths: Sequence[Path], on_progress: Progress | None = None
) -> tuple[Rows | None, list[str]]:
    """All images of some paths, if these are indexes with many rows; and sentences for the user.

    Args:
        paths: what the user named.
        on_progress: called with (done, total) rows, if their row file has to be made.

    Raises: UserError for indexes that cannot be read or do not go together.
    """
    if not is_large(paths):
        return None, []
    files = IndexFiles.of(paths)
    if files is None:
        return None, [
            "the folders of these indexes lie in each other, so all images are kept in memory; one"
            " index of all folders needs less"
        ]
    _refuse_two_salts(files)
    try:
        rows, made = open_rows(files, on_progress)
    except OSError as error:
        return None, [
            f"no row file can be written ({error.strerror}), neither beside {paths[0]} nor in the"
            " folder of caches, so all images are kept in memory"
        ]
    if not made:
        return rows, []
    size = rows.file.path.stat().st_size / 1e9
    return rows, [
        f"{rows.file.path} ({size:.2g} GB) was made: with it, runs find any of the {len(rows):,}"
        " images at once; it may be removed, and is made again when the index has changed"
    ]


def index_of(rows: Rows, take: Sequence[str], where: str | None) -> tuple[Index, int, int]:
    """The images to train on, and the files that are left out.

    Args:
        rows: all images.
        take: kinds that are not left out, as `index.build_index` takes them.
        where: a condition on the images.

    Returns: the index; the number of files; how many unusable ones the index does not list.

    Raises: UserError for a condition that is not understood or met, and where nothing is left.
    """
    facts = rows.file.facts
    notes = [facts["remark"]] if facts["remark"] is not None else []
    found = rows if where is None else rows.where(where)
    wanted = found
    counts: dict[str, int] = {}
    if not (where is not None and "kind" in columns_of(where)) and "all" not in take:
        kinds = {kind: count for (kind,), count in found.counts("kind").most_common()}
        counts = {kind: n for kind, n in kinds.items() if kind is not None and kind not in take}
        wanted = found.of_kinds({None, *take})
    if counts and not len(wanted):
        raise nothing_left(counts)
    skipped = [_skipped(*of) for of in facts["unusable"]]
    unlisted = facts["unusable files"] - len(skipped)
    if 0 < sum(counts.values()) <= LISTED_UP_TO:
        skipped += reasons_of(list(found.of_kinds(counts)))
    elif counts:
        notes.append(
            f"skipped.csv does not list the {sum(counts.values()):,} images that are left out for"
            " their kind: the index has it in the column 'kind'"
        )
    if unlisted:
        notes.append(
            f"skipped.csv does not list {unlisted:,} more files that cannot be used: the index has"
            " all of them in the column 'unusable'"
        )
    images = list(wanted) if len(wanted) <= LISTED_UP_TO else wanted
    passed = passed_over(rows.files.facts)
    return (
        Index(images, skipped, notes, counts, facts["without image"], passed),
        facts["files"],
        unlisted,
    )


def _skipped(source: str, path: str, reason: str) -> Skipped:
    return Skipped(as_path(str(name_of(source))) / str(name_of(path)), reason)


def _refuse_two_salts(files: IndexFiles) -> None:
    """Refuse indexes whose keys of patients were made with different salts. Raises UserError."""
    if len({facts.salt for facts in files.facts}) == 1:
        return
    first: dict[str, Path] = {}
    for number, facts in enumerate(files.facts):
        if facts.salt not in first and files.knows_patients(number):
            first[facts.salt] = facts.sources[0]
    if len(first) > 1:
        one, other = list(first.values())[:2]
        raise two_salts(one, other)
