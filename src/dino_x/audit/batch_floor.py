"""``dino-x batch-floor``: how large the batch must be, measured on a model and images."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dino_x.audit.distance import SMALLEST, Queue, batch_sizes, default_repeats, measure
from dino_x.audit.figure import draw
from dino_x.audit.rarity import SPARSEST, labelled_class, sparsest
from dino_x.audit.rows import load_model, make_rows, sample
from dino_x.audit.verdict import print_table, recommend, warnings_of
from dino_x.data.index.index import Index, build_index
from dino_x.errors import UserError
from dino_x.files import write_json
from dino_x.progress import progress_bar
from dino_x.runs.folder import reading_of
from dino_x.views.sizes import GLOBAL_VIEWS

FILES = ("batch_floor.json", "batch_floor.png")
QUEUES = (1024, 4096)  # rows: bottlenecks of global crops, two an image
BESIDE_QUEUE = 256  # batches up to this size can have every queue beside them
MOST_IMAGES = 10_000  # more are sampled: the curves need no more, and time grows with them
MOST_PASSES = 4  # over few images, to fill a queue


def batch_floor(
    model: str | Path,
    data_paths: Sequence[str | Path],
    out: Path,
    console: Console,
    *,
    labels: str | Path | None = None,
    label_column: str = "label",
    rare_class: str | None = None,
    repeats: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Measures, writes ``batch_floor.json`` and ``batch_floor.png`` into ``out``, prints a table.

    Args:
        model: a run (teacher and DINO head of its newest checkpoint), or a backbone as transformers
            saves it, to whose features prototypes are fitted.
        data_paths: files and folders of images.
        out: a folder to make; one that holds nothing but an earlier result may be there.
        console: where to say what happens.
        labels: ``folder``, ``column`` or a CSV file; without it, rare are the sparsest tenth.
        label_column: the column of the CSV file that holds the class.
        rare_class: the class that is looked at apart; None is the smallest.
        repeats: draws of the rest of the batch; None is 10, or fewer above 1,024 prototypes.
        device: auto, cpu, cuda or mps.
        seed: of crops, batches and fitted prototypes.

    Returns: what ``batch_floor.json`` holds. No file and no patient is named in it.

    Raises:
        UserError: for everything the user can put right, before anything is written.
    """
    _check(out, repeats, seed, labels, rare_class)
    loaded = load_model(model, device)
    with progress_bar(console, "reading images") as progress:
        found = build_index(
            [Path(path) for path in data_paths],
            verify="headers",
            on_progress=progress,
            reading=reading_of(model),
        )
    if len(found) < SMALLEST:
        raise UserError(
            f"{len(found)} images are fewer than the smallest batch, {SMALLEST}; name more with"
            " --data"
        )
    index = Index([found.rows[row] for row in sample(found.rows, MOST_IMAGES, seed)])
    if labels is not None:
        rare_N, class_name = labelled_class(
            labels, rare_class, index.rows, data_paths, label_column
        )
        rare = f"the class '{class_name}'"
    passes = passes_for(len(index))
    with progress_bar(console, "teacher's crops") as progress:
        rows = make_rows(loaded, index, passes, seed, progress)
    if labels is None:
        rare_N = sparsest(rows.features_NF)
        rare = f"the sparsest {SPARSEST:.0%} of feature space"
    queues = queues_for(len(index), passes)
    repeats = repeats or default_repeats(len(rows.prototypes_KD))
    with progress_bar(console, "solving batches") as progress:
        groups = measure(
            rows,
            {"all": rare_N | True, "rare": rare_N},
            queues,
            repeats=repeats,
            seed=seed,
            progress=progress,
        )
    result: dict[str, Any] = {
        "images": len(index),
        "left_out": {
            "files that cannot be read": len(found.skipped),
            f"images beyond {MOST_IMAGES:,}": len(found) - len(index),
        },
        "rare": rare,
        "settings": {
            "head": "the run's DINO head" if loaded.step is not None else "fitted prototypes",
            "step": loaded.step,
            "prototypes": len(rows.prototypes_KD),
            "temperature": rows.temperature,
            "iterations": rows.iterations,
            "relaxation": rows.relaxation,
            "crops_per_image": GLOBAL_VIEWS,
            "passes": passes,
            "repeats": repeats,
            "seed": seed,
        },
        "queues": [{"asked": queue.asked, "rows": queue.rows} for queue in queues],
        "groups": groups,
    }
    result["recommendation"] = recommend(result)
    result["warnings"] = warnings_of(result)
    _write(result, out)
    print_table(result, console)
    console.print(f"written to {out / FILES[0]} and {FILES[1]}", highlight=False, soft_wrap=True)
    return result


def passes_for(images: int) -> int:
    """How often other crops of all images are drawn, so that the longest queue can be filled."""
    wanted = BESIDE_QUEUE + max(QUEUES) // GLOBAL_VIEWS
    return min(MOST_PASSES, math.ceil(wanted / images))


def queues_for(images: int, passes: int) -> list[Queue]:
    """The queues, cut to what the images can fill; those that become equal only once."""
    beside = min(BESIDE_QUEUE, batch_sizes(images)[-1])
    most = (passes * images - beside) * GLOBAL_VIEWS
    if most <= 0:
        return []
    queues: dict[int, Queue] = {}
    for asked in QUEUES:
        rows = min(asked, most)
        queues.setdefault(rows, Queue(asked, rows))
    return list(queues.values())


def _check(
    out: Path, repeats: int | None, seed: int, labels: str | Path | None, rare_class: str | None
) -> None:
    if repeats is not None and repeats < 1:
        raise UserError(f"--repeats {repeats} is less than 1")
    if seed < 0:
        raise UserError(f"--seed {seed} is negative")
    if rare_class is not None and labels is None:
        raise UserError(f"--rare-class {rare_class} needs --labels folder or --labels FILE.csv")
    _check_folder(out)


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier result."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; --out takes a folder")
    others = sorted({entry.name for entry in out.iterdir()} - set(FILES))
    if others:
        raise UserError(f"{out} holds other files, such as '{others[0]}'; choose another --out")


def _write(result: dict[str, Any], out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw(result, out / FILES[1])
        write_json(out / FILES[0], result)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error
