"""What a run keeps of the images it trained on: keys of their content, and the split it made.

Both are there for honest figures later: which tested images were trained on, and which images the
run held out. No image and no patient is in them, but ``split.csv`` holds paths below the data.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from dino_x.data.image import ImageRef
from dino_x.data.index.content import apart, content_keys, joined
from dino_x.data.index.rows import Rows
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.member import file_of
from dino_x.files import write_atomically
from dino_x.runs.folder import RunFolder

MOST_FILES = 1_000_000  # of a larger set no keys are made: every file would be opened once more


def keys_of_images(rows: Sequence[ImageRef]) -> set[bytes] | None:
    """The keys of the files of some images; None where they are not made.

    None is for more than a million files, and for files in an object store.
    """
    if isinstance(rows, Rows):
        if rows.remote or rows.file.facts["files with images"] > MOST_FILES:
            return None
        rows = list(rows.one_of_each_file())
    paths = list(dict.fromkeys(row.path for row in rows))
    if len(paths) > MOST_FILES or any(is_remote(file_of(path)) for path in paths):
        return None
    return set(content_keys(paths).values())


def keep_keys(run: RunFolder, keys: set[bytes] | None) -> None:
    """Write the keys of what a run trains on."""
    if keys is not None:
        write_atomically(run.trained_on, lambda path: path.write_bytes(joined(keys)))


def kept_keys(run: RunFolder) -> set[bytes] | None:
    """The keys of what a run trained on; None if it kept none that can be read."""
    try:
        return apart(run.trained_on.read_bytes())
    except (OSError, ValueError):
        return None


def keep_split(run: RunFolder, made: Mapping[str, str]) -> None:
    """Write the split that a run made, ``path,split``."""

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "split"])
            writer.writerows(sorted(made.items()))

    if made:
        write_atomically(run.split, write)


def kept_split(run: RunFolder) -> dict[str, str]:
    """The split that a run made, by the path of a file below the data; empty if it made none."""
    if not run.split.is_file():
        return {}
    with run.split.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))[1:]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[1] in ("train", "test")}
