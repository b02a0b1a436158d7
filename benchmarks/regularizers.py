"""What is a regularizer worth on small data? KoLeo, SIGReg and none on the demo's images, by seed.

    python benchmarks/regularizers.py --out regularizers.jsonl [--seeds 0 1 2] [--names none koleo]
    python benchmarks/regularizers.py --out regularizers.jsonl --table

Each line is a whole run with the demo's settings but for the regularizer, in a process of its own;
what ``--out`` holds is not run again. Figures are on held-out patients. KoLeo has the small
preset's weight. Random weights and raw pixels stand beside them.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines_of_runs import once, read
from rich.console import Console

from dino_x.commands.demo import SETTINGS, demo_folder, demo_labels
from dino_x.commands.pretrain import pretrain
from dino_x.config.presets import read_config

SIGREG_WEIGHTS = (0.01, 0.05, 0.25)
REGULARIZERS: dict[str, dict[str, Any]] = {
    "koleo": {"loss.regularizer": "koleo"},
    "none": {"loss.regularizer": "none"},
    **{
        f"sigreg {weight:g}": {"loss.regularizer": "sigreg", "loss.sigreg_weight": weight}
        for weight in SIGREG_WEIGHTS
    },
}
COLUMNS = ("model knn", "model linear", "peak GiB", "CPU s")
BASELINES = ("random", "pixels")


def run(name: str, seed: int, steps: int) -> dict[str, Any]:
    """The figures of one run, its peak memory and its processor time."""
    torch.set_num_threads(1)
    folder = demo_folder()
    overrides = read_config(SETTINGS) | REGULARIZERS[name] | {
        "data.paths": [str(folder / "films"), str(folder / "mri")],
        "data.labels": str(demo_labels()), "train.seed": seed, "train.steps": steps,
        "report.page": False, "report.snapshots": 0,
    }  # fmt: skip
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        console = Console(quiet=True)
        trained = pretrain(overrides, Path(place) / "run", resume=False, console=console)
        results = json.loads(trained.evaluation.read_text())["results"]
    figures = {
        f"{model} {task}": results[model][task][setting]["balanced_accuracy"]["value"]
        for model in ("model", *BASELINES)
        for task, setting in (("knn", "20"), ("linear", "all"))
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return figures | {"peak GiB": peak, "CPU s": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON line a run")
    parser.add_argument("--names", nargs="+", choices=list(REGULARIZERS), default=[*REGULARIZERS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if not arguments.table:
        for seed in arguments.seeds:
            for name in arguments.names:
                once({"name": name, "seed": seed, "steps": arguments.steps}, arguments.out, alone)
    print_table(read(arguments.out))


def alone(**key: Any) -> dict[str, Any]:
    """``run`` in a process of its own, whose peak of memory is that of the run."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(run, kwds=key)
    return {column: round(value, 4) for column, value in figures.items()}


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means and standard deviations over seeds, in Markdown."""
    print("| regularizer | seeds | kNN | linear probe | peak memory, GiB | CPU s |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in REGULARIZERS:
        group = [line for line in lines if line["name"] == name]
        if group:
            print(f"| {name} | {len(group)} | " + " | ".join(cells(group, COLUMNS)) + " |")
    for name in BASELINES:
        columns = tuple(f"{name} {task}" for task in ("knn", "linear"))
        seen = [line for line in lines if line["name"] == lines[0]["name"]]
        print(f"| {name} | {len(seen)} | " + " | ".join(cells(seen, columns)) + " | | |")


def cells(group: list[dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    """Each column's mean, and its spread over seeds where there are several."""
    found = []
    for column in columns:
        values = np.array([line[column] for line in group])
        digits = 0 if column == "CPU s" else 3
        spread = f" ({values.std(ddof=1):.{digits}f})" if len(values) > 1 else ""
        found.append(f"{values.mean():.{digits}f}{spread}")
    return found


if __name__ == "__main__":
    main()
