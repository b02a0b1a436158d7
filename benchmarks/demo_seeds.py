"""Does the demo learn? Figures on held-out patients over seeds, beside the baselines.

    python benchmarks/demo_seeds.py [--seeds 0 1 2]

Each seed is a whole ``dino-x demo``; its random weights have the same seed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dino_x.commands.demo import run_demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    console = Console()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        for seed in seeds:
            started = time.monotonic()
            run = run_demo(Path(place) / str(seed), seed, Console(quiet=True))
            result = json.loads(run.evaluation.read_text())["results"]
            for task, setting in (("knn", "20"), ("linear", "all")):
                for name, tasks in result.items():
                    for metric, figure in tasks[task][setting].items():
                        rows.setdefault(f"{task}, {name}, {metric}", []).append(figure["value"])
            rows.setdefault("seconds", []).append(time.monotonic() - started)
    table = Table("", *(f"seed {seed}" for seed in seeds), "mean", "std", box=None)
    for name, values in rows.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        table.add_row(name, *(f"{v:.3f}" for v in [*values, float(np.mean(values)), spread]))
    console.print(table)
    console.print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
