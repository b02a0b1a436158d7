"""Does going on from a good start keep it? kNN of the start and after a few steps, by setting.

    python benchmarks/continue_start.py --start RUN --data FOLDER [--steps 20] [--images 900]

RUN is that of ``dino-x demo``; FOLDER holds chest films with a ``manifest.csv`` (path, label,
patient, split). Only patients that the demo's films do not show are used. Each line changes what
the line above it has.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from make_demo_data import choose
from rich.console import Console
from rich.table import Table

from dino_x.commands.pretrain import pretrain
from dino_x.evaluation.suite import evaluate

K = 20  # neighbours
PLAIN = {"preset": "small", "train.effective_batch": 256, "train.micro_batch": 16,
         "views.global_size": 64, "model.heads_from": "new", "optim.lr": 0.003}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # name: what it changes
    "small preset as it is, new heads": {},
    "+ backbone frozen for the first quarter": {"optim.freeze_backbone": 0.25},
    "+ rate 0.001, layer decay 0.8": {"optim.lr": 1e-3, "optim.layer_decay": 0.8},
    "+ teacher momentum 0.99": {"teacher.momentum": 0.99},
    "the run's heads, nothing frozen": {"model.heads_from": "run", "optim.freeze_backbone": 0},
}


def other_films(folder: Path, images: int, table: Path) -> list[str]:
    """Films of patients that are not in the demo, a table of their labels, and their paths."""
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = {row["patient"] for row in choose(rows)}
    rows = [row for row in rows if row["patient"] not in known]
    chosen = rows[:: max(1, len(rows) // images)][:images]
    for row in chosen:
        row["path"] = str((folder / row["path"]).resolve())
        row["split"] = "train" if row["split"] == "train" else "test"
    with table.open("w") as file:
        writer = csv.DictWriter(file, ["path", "label", "patient", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(chosen)
    return [row["path"] for row in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--start", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    figures = Table("", "balanced accuracy", "AUROC", box=None)
    with tempfile.TemporaryDirectory() as place:
        labels = Path(place) / "labels.csv"
        paths = other_films(arguments.data, arguments.images, labels)
        start = evaluate(arguments.start, paths, labels, tasks=["knn"], ks=[K])["results"]
        for name in ("model", "random", "pixels"):
            add(figures, {"model": "the start"}.get(name, name), start[name])
        overrides: dict[str, Any] = PLAIN | {
            "data.paths": paths, "data.labels": str(labels), "model.name": arguments.start,
            "train.seed": arguments.seed, "train.steps": arguments.steps,
        }  # fmt: skip
        for number, (name, changes) in enumerate(SETTINGS.items()):
            overrides |= changes
            frozen = round(overrides.get("optim.freeze_backbone", 0) * arguments.steps)
            run = pretrain(overrides | {"optim.freeze_backbone": frozen},
                           Path(place) / str(number), False, Console(quiet=True))  # fmt: skip
            result = json.loads(run.evaluation.read_text())["results"]["model"]
            add(figures, name, result)
    console.print(figures)
    console.print(
        f"{len(paths)} films, {arguments.steps} steps of 256, seed {arguments.seed}; CPU,"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def add(figures: Table, name: str, result: dict[str, Any]) -> None:
    knn = result["knn"][str(K)]
    figures.add_row(name, *(f"{knn[key]['value']:.3f}" for key in ("balanced_accuracy", "auroc")))


if __name__ == "__main__":
    main()
