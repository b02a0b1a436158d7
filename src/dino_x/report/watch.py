"""``dino-x report --watch``: the page of a run that is training, written again and again."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dino_x.errors import UserError
from dino_x.report.run_data import RunData, read_run
from dino_x.report.write import report

LEAST_SECONDS = 5


def watch(
    path: Path,
    out: Path | None,
    console: Console,
    *,
    images: bool = True,
    every: int = 60,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Write the page of a run until the run is finished, or has stopped.

    An open page loads itself anew. The last page that is written does not.

    Args:
        path: the RUN folder.
        out: the file; None for ``RUN/report.html``.
        console: where to say what is done.
        images: whether the user's images may be in the page.
        every: seconds between two pages, at least ``LEAST_SECONDS``.
        wait: what waits.

    Returns: the file.

    Raises: UserError if there is no run, or the file cannot be written.
    """
    if every < LEAST_SECONDS:
        raise UserError(f"--watch {every}: the page is written every {LEAST_SECONDS} s at most")
    console.print(
        f"the page is written every {every} s until the run ends; Ctrl-C ends only this",
        highlight=False,
    )
    shown = -1
    while is_going_on(run := read_run(path)):
        if run.done != shown:
            page = report(path, out, images=images, quick=True, refresh=every)
            line = f"step {run.done:,} of {run.steps:,}  {page}"
            console.print(line, highlight=False, soft_wrap=True, markup=False)
            shown = run.done
        try:
            wait(every)
        except KeyboardInterrupt:  # the page that stays does not load itself anew
            break
    page = report(path, out, images=images)
    console.print(f"written to {page}", highlight=False, soft_wrap=True, markup=False)
    return page


def is_going_on(run: RunData) -> bool:
    """Whether a run is training, or has not taken its first step yet."""
    return run.is_training or not run.done
