"""What is a regularizer worth on small data? KoLeo, SIGReg and none on the demo's images, by seed.

    python benchmarks/regularizers.py [--seeds 0 1 2] [--steps 480] [--sigreg-weights 0.05]

Each cell is a whole run with the demo's settings but for the regularizer; figures are on held-out
patients. KoLeo has the small preset's weight. Random weights and raw pixels stand beside them.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dino_x.commands.demo import SETTINGS, demo_folder, demo_labels
from dino_x.commands.pretrain import pretrain
from dino_x.config.presets import read_config

BASELINES = ("random", "pixels")

Figures = dict[str, list[float]]


def settings_of(weights: list[float]) -> dict[str, dict[str, Any]]:
    """The regularizers that are compared, by the name of their row."""
    compared: dict[str, dict[str, Any]] = {
        "none": {"loss.regularizer": "none"},
        "koleo": {"loss.regularizer": "koleo"},
    }
    for weight in weights:
        compared[f"sigreg {weight:g}"] = {
            "loss.regularizer": "sigreg",
            "loss.sigreg_weight": weight,
        }
    return compared


def figures_of(settings: dict[str, Any], seed: int, steps: int) -> dict[str, dict[str, float]]:
    """kNN of one run: its metrics by model."""
    folder = demo_folder()
    overrides = read_config(SETTINGS) | {
        "data.paths": [str(folder / "films"), str(folder / "mri")],
        "data.labels": str(demo_labels()),
        "train.seed": seed,
        "train.steps": steps,
        "report.page": False,
    }
    with tempfile.TemporaryDirectory() as place:
        console = Console(quiet=True)
        run = pretrain(overrides | settings, Path(place) / "run", resume=False, console=console)
        results = json.loads(run.evaluation.read_text())["results"]
    found = {}
    for model, tasks in results.items():
        found[model] = {name: figure["value"] for name, figure in tasks["knn"]["20"].items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--sigreg-weights", type=float, nargs="+", default=[0.05])
    arguments = parser.parse_args()
    console, rows = Console(), Figures()
    for name, settings in settings_of(arguments.sigreg_weights).items():
        for seed in arguments.seeds:
            started = time.monotonic()
            figures = figures_of(settings, seed, arguments.steps)
            for model, metrics in figures.items():
                row = model if model in BASELINES else name
                if row in BASELINES and name != "none":
                    continue  # the same for each regularizer
                for metric, value in metrics.items():
                    rows.setdefault(f"{row}, {metric}", []).append(value)
            rows.setdefault(f"{name}, seconds", []).append(time.monotonic() - started)
    table = Table("kNN", *(f"seed {seed}" for seed in arguments.seeds), "mean", "std", box=None)
    for name, values in rows.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        table.add_row(name, *(f"{v:.3f}" for v in [*values, float(np.mean(values)), spread]))
    console.print(table)
    threads = torch.get_num_threads()
    console.print(f"{arguments.steps} steps, CPU, {threads} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
