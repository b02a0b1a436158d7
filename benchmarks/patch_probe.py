"""Do patches of a model made from nothing tell where things are? Segmentation by patch probe.

    python benchmarks/patch_probe.py --data DATA --out patch_probe.jsonl
    python benchmarks/patch_probe.py --out patch_probe.jsonl --table

DATA holds the folders cxr_pneumonia_224, cxr_lungmask and mri_hippocampus_nifti. Each run is a
whole ``dino-x pretrain --preset try`` on the training patients and a ``dino-x evaluate`` of the
masks of others, beside random weights and raw pixels. It is one line of ``--out`` as soon as it is
done, and what is there is not run again.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines_of_runs import once, read
from quality_sets import split_of
from rich.console import Console

from dino_x.commands.pretrain import pretrain
from dino_x.evaluation.suite import evaluate

EVERY = 3  # of the MR volumes one in so many has its masks looked at: 58, with 2,000 slices
BASELINES = ("pixels", "random")
CHANGES: dict[str, dict[str, Any]] = {
    "try": {},
    "patches of 8 px": {"model.patch_size": 8},
}


@dataclass(frozen=True)
class Masked:
    """Images to train on, and others with masks.

    Attributes:
        training: files without masks, of training patients alone.
        images: the folder of the images with masks.
        rows: of a table: path, mask, patient and split.
    """

    training: list[Path]
    images: Path
    rows: list[dict[str, str]]


def lungs(data: Path) -> Masked:
    """Chest films near their own resolution, with masks of the lungs; trained on small films."""
    films, masks = data / "cxr_pneumonia_224", data / "cxr_lungmask"
    training = [films / row["path"] for row in rows_of(films) if row["split"] == "train"]
    names = ("path", "mask", "patient", "split")
    rows = [{name: row[name] for name in names} for row in rows_of(masks)]
    for row in rows:
        row["path"], row["mask"] = str(masks / row["path"]), str(masks / row["mask"])
    return Masked(training, masks / "images", rows)


def hippocampus(data: Path) -> Masked:
    """MR volumes around the hippocampus, with masks of its two parts."""
    folder = data / "mri_hippocampus_nifti"
    files = sorted((folder / "images").iterdir())
    sides = split_of(np.array([file.name for file in files]))
    training = [file for file, side in zip(files, sides, strict=True) if side == "train"]
    rows = [
        {
            "path": str(file), "mask": str(folder / "labels" / file.name),
            "patient": file.name, "split": str(side),
        }
        for file, side in zip(files, sides, strict=True)
    ]  # fmt: skip
    return Masked(training, folder / "images", rows[::EVERY])


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's manifest."""
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


SETS: dict[str, Callable[[Path], Masked]] = {"lungs": lungs, "hippocampus": hippocampus}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON line a run")
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipes", nargs="+", choices=list(CHANGES), default=["try"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=960)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.data is None:
            parser.error("name the folder of the data with --data, or print --out with --table")
        torch.set_num_threads(1)
        for seed in arguments.seeds:
            for recipe in arguments.recipes:
                for name in arguments.sets:
                    key = {"set": name, "recipe": recipe, "steps": arguments.steps, "seed": seed}
                    once(key, arguments.out, partial(measured, arguments.data.resolve()))
    print_table(read(arguments.out))


def measured(data: Path, *, set: str, recipe: str, steps: int, seed: int) -> dict[str, Any]:
    """The Dice of a run and of the baselines, and the differences with their intervals."""
    masked = SETS[set](data)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "images").mkdir()
        for film in masked.training:
            (place / "images" / film.name).symlink_to(film.resolve())
        overrides = CHANGES[recipe] | {
            "preset": "try", "data.paths": [str(place / "images")], "train.seed": seed,
            "train.steps": steps, "report.page": False, "report.snapshots": 0,
        }  # fmt: skip
        console = Console(quiet=True)
        run = pretrain(overrides, place / "run", resume=False, console=console)
        trained = time.process_time() - started
        table = place / "masks.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(masked.rows[0]))
            writer.writeheader()
            writer.writerows(masked.rows)
        found = evaluate(run.path, [masked.images], masks=table, seed=seed)
    results = found["results"]
    dice = {who: results[who]["segmentation"]["mean"]["dice"] for who in ("model", *BASELINES)}
    differences = found["verdicts"]["segmentation"]["differences"]
    return {
        **{who: round(value["value"], 4) for who, value in dice.items()},
        "differences": {
            who: {key: round(value, 4) for key, value in differences[who].items()}
            for who in BASELINES
        },
        "images": found["masks"],
        "cpu_seconds": {
            "training": round(trained), "evaluation": round(time.process_time() - started - trained)
        },
    }  # fmt: skip


def print_table(lines: list[dict[str, Any]]) -> None:
    """A row a run, in Markdown."""
    print("| set | recipe | steps | seed | Dice | raw pixels | minus | random weights | minus |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for line in sorted(lines, key=lambda one: (one["set"], one["recipe"], one["steps"])):
        cells = [line["set"], line["recipe"], str(line["steps"]), str(line["seed"])]
        cells.append(f"{line['model']:.3f}")
        for who in BASELINES:
            apart = line["differences"][who]
            cells.append(f"{line[who]:.3f}")
            cells.append(f"{apart['value']:+.3f} ({apart['low']:+.3f}, {apart['high']:+.3f})")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
