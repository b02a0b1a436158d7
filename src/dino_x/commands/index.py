"""``dino-x index``: the images of some folders as a table, made or brought up to date."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

from rich.console import Console
from rich.text import Text

from dino_x.data.image import Reading
from dino_x.data.index.catalog import SUFFIX, Update, holds_images, update
from dino_x.data.index.index import LOOKED_FOR
from dino_x.data.index.large import is_large, open_large
from dino_x.data.index.passed_over import in_a_line, ways_out
from dino_x.data.index.summary import summary, unusable, values_of_headers
from dino_x.data.storage.archives import address, is_remote
from dino_x.errors import UserError
from dino_x.progress import progress_bar

_MOST_LINES, _MOST_REASONS = 25, 12
_OTHER_WAYS = f"{'':<12}and others: `dino-x index` of single folders names them"


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
    _say(found, paths, out, console)
    if is_large([out]):
        _make_row_file(out, console)
    return found


def _make_row_file(out: Path, console: Console) -> None:
    """Make what runs on a large index need now, so that none has to wait for it."""
    with progress_bar(console, "making the row file") as on_progress:
        _, notes = open_large([out], on_progress)
    for note in notes:
        console.print(Text(f"{'note':<12}{note}", style="yellow"), soft_wrap=True)


def _say(found: Update, paths: Sequence[Path], out: Path, console: Console) -> None:
    """Print what is in an index, in at most `_MOST_LINES` lines of the width of the console."""
    records = found.table.records
    passed = Counter(found.table.passed_over) - values_of_headers(records)
    broken = unusable(records)
    count = sum(files for files, _, _ in broken)
    changes = [f"{found.read:,} files read"]
    changes += [f"{found.kept:,} kept from before"] if found.kept else []
    changes += [f"{found.gone:,} gone"] if found.gone else []
    page = _Page(console.width)
    named = _names(paths)
    lines = summary(records, named)
    if "formats" in lines:
        lines["images"] += f": {lines.pop('formats')}"
    head = [page.line(title, text) for title, text in lines.items()]
    head.append(page.line("unusable", f"{count:,} files" if broken else "none"))
    reasons = [
        page.line(f"{files:>10,}", f"{reason}, {'such as ' if files > 1 else ''}{named(example)}")
        for files, reason, example in broken[:_MOST_REASONS]
    ]
    over = page.line("passed over", in_a_line(passed) if passed else "none")
    ways = [[way] for way in page.line("", "; ".join(ways_out(passed)))]
    end = [page.line("note", note) for note in found.notes]
    end.append(
        page.line("written to", f"{out} ({', '.join(changes)}); train on it with --data {out}")
    )
    room = max(6, _MOST_LINES - sum(map(len, [*head, over, *end])))
    ways = _shortened(ways, max(room // 2, room - sum(map(len, reasons))), _OTHER_WAYS)
    others = f"{'':<12}for other reasons: see the column `unusable`"
    reasons = _shortened(reasons, room - sum(map(len, ways)), others)
    for block, style in (
        *((block, None) for block in head[:-1]),
        *((block, "yellow" if broken else None) for block in (head[-1], *reasons)),
        (over, None),
        *((block, "yellow") for block in (*ways, *end[:-1])),
        (end[-1], None),
    ):
        for text in block:
            console.print(Text(text, style=style or ""), soft_wrap=True)


def _names(paths: Sequence[Path]) -> Callable[[Path], object]:
    """How files are named: below the only folder that was named, else as they are."""

    def named(path: Path) -> Path:
        alone = len(paths) == 1 and paths[0] in path.parents
        return path.relative_to(paths[0]) if alone else path

    return named


@dataclass(frozen=True)
class _Page:
    """Lines with a title in front, not wider than a console."""

    width: int

    def line(self, title: str, text: str) -> list[str]:
        """A text behind a title, in as many lines as it needs."""
        return wrap(
            text,
            self.width,
            initial_indent=f"{title:<12}",
            subsequent_indent=f"{'':<12}",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _shortened(blocks: list[list[str]], room: int, rest: str) -> list[list[str]]:
    """As many whole blocks as there is room for; one line stands for those that are left out."""
    if sum(map(len, blocks)) <= room:
        return blocks
    kept: list[list[str]] = []
    for block in blocks:
        if sum(map(len, kept)) + len(block) > room - 1:
            break
        kept.append(block)
    return [*kept, [rest]]
