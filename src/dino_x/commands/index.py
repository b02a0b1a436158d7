"""``dino-x index``: the images of some folders as a table, made or brought up to date."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dino_x.data.image import Reading
from dino_x.data.index.catalog import SUFFIX, Update, holds_images, update
from dino_x.data.index.index import LOOKED_FOR
from dino_x.data.index.passed_over import in_a_line, ways_out
from dino_x.data.index.summary import summary, unusable
from dino_x.data.storage.archives import address, is_remote
from dino_x.errors import UserError
from dino_x.progress import progress_bar

_MOST_REASONS = 12


def make_index(
    paths: Sequence[Path],
    out: Path,
    console: Console,
    *,
    reading: Reading,
    labels: str | None = None,
    label_column: str = "label",
    workers: int | None = None,
) -> Update:
    """Write or continue an index, and say what is in it.

    Args:
        paths: folders and files.
        out: the index; where it is there, only new and changed files are read.
        console: where to say what happens.
        reading: what files leave open.
        labels: ``folder``, ``column`` or a CSV file, see `load_labels`; or None.
        label_column: the column of the CSV file that holds the class.
        workers: headers read at a time; the number of cores if None.

    Raises: UserError for paths, labels or an index that cannot be used; what existed is kept.
    """
    from dino_x.data.index.labels import label_of  # it builds on this package

    if out.suffix != SUFFIX:
        raise UserError(f"--out {out} must end in {SUFFIX}, as in index{SUFFIX}")
    given = [
        path
        for path in paths
        if path.suffix == SUFFIX
        and not is_remote(path)
        and not (path.is_file() and holds_images(path))
    ]
    if given:
        raise UserError(f"{given[0]} is an index; name the folders of images, and it with --out")
    with progress_bar(console, "reading headers") as on_progress:
        found = update(
            paths,
            reading=reading,
            kept_in=out,
            workers=workers,
            on_progress=on_progress,
            label_of=partial(label_of, labels, data_paths=paths, label_column=label_column)
            if labels
            else None,
        )
    if not found.table.records:
        out.unlink(missing_ok=True)
        raise UserError(f"no images in {', '.join(map(address, paths[:3]))}: {LOOKED_FOR}")
    _say(found, out, console)
    return found


def _say(found: Update, out: Path, console: Console) -> None:
    def line(title: str, text: str, style: str | None = None) -> None:
        console.print(Text(f"{title:<12}{text}", style=style or ""), soft_wrap=True)

    changes = [f"{found.read:,} files read"]
    changes += [f"{found.kept:,} kept from before"] if found.kept else []
    changes += [f"{found.gone:,} gone"] if found.gone else []
    for title, text in summary(found.table.records).items():
        line(title, text)
    broken = unusable(found.table.records)
    count = sum(files for files, _, _ in broken)
    line("unusable", f"{count:,} files" if broken else "none", "yellow" if broken else None)
    for files, reason, example in broken[:_MOST_REASONS]:
        line("", f"{files:>6,}  {reason}, {'such as ' if files > 1 else ''}{example}")
    if len(broken) > _MOST_REASONS:
        rest = sum(files for files, _, _ in broken[_MOST_REASONS:])
        line("", f"{rest:>6,}  for other reasons: see the column 'unusable'")
    passed = found.table.passed_over
    line("passed over", in_a_line(passed) if passed else "none")
    for way in ways_out(passed)[:_MOST_REASONS]:
        line("", f"  {way}", "yellow")
    for note in found.notes:
        line("note", note, "yellow")
    line("written to", f"{out} ({', '.join(changes)}); train on it with --data {out}")
