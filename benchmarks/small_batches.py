"""Does a small effective batch train? The demo with other batches and ways to center.

    python benchmarks/small_batches.py --out small_batches.jsonl
    python benchmarks/small_batches.py --out small_batches.jsonl --table

Each run is a whole ``dino-x pretrain`` on the demo's images, 30,720 of them in all, evaluated on
held-out patients. It is one line of ``--out`` as soon as it is done, and what is there is not run
again. ``--network former`` has the network and rate that the demo had before (4 layers of 128).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from former_demo import FORMER_DEMO
from lines_of_runs import once, read
from rich.console import Console

from dino_x.commands.demo import SETTINGS
from dino_x.commands.pretrain import pretrain
from dino_x.config.presets import read_config
from dino_x.demo import demo_folder, demo_labels

BATCHES = (8, 16, 32, 64, 128)
FLOOR = 256
NETWORKS = {"demo": read_config(SETTINGS), "former": FORMER_DEMO}
MICRO_BATCH = {"demo": 32, "former": 16}
NOT_SCALED = {"teacher.momentum_batch": None}  # the teacher's momentum is 0.9 at every batch
SOFTMAX = {"loss.centering": "softmax"}
SINKHORN = {"loss.centering": "sinkhorn"}


def queue(batch: int) -> dict[str, Any]:
    """Rows of earlier steps bring those of a step to the floor's."""
    return {"loss.queue": 2 * (FLOOR - batch)}


KOLEO = {"loss.koleo_weight": 0.05}
NO_KOLEO = {"loss.koleo_weight": 0.0}
COLD = {"teacher.temperature_start": 0.03, "teacher.temperature": 0.03}
ARMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "default": lambda batch: {},
    "softmax, no KoLeo, momentum not scaled": lambda batch: SOFTMAX | NO_KOLEO | COLD | NOT_SCALED,
    "softmax, no KoLeo": lambda batch: SOFTMAX | NO_KOLEO | COLD,
    "softmax": lambda batch: SOFTMAX | KOLEO,
    "softmax, quick center": lambda batch: SOFTMAX | KOLEO | {"loss.center_batch": None},
    "softmax, colder": lambda batch: SOFTMAX | KOLEO | COLD,
    "softmax, momentum not scaled": lambda batch: SOFTMAX | KOLEO | NOT_SCALED,
    "SK": lambda batch: SINKHORN | KOLEO,
    "SK, queue, momentum not scaled": lambda b: SINKHORN | KOLEO | queue(b) | NOT_SCALED,
    "SK, queue": lambda batch: SINKHORN | KOLEO | queue(batch),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON line a run")
    parser.add_argument("--network", choices=list(NETWORKS), default="demo")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["default"])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=30_720)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(1)
        for arm in arguments.arms:
            for batch in arguments.batches:
                for seed in arguments.seeds:
                    key = {"network": arguments.network, "arm": arm, "batch": batch}
                    once(key | {"seed": seed, "images": arguments.images}, arguments.out, trained)
    print_table(read(arguments.out))


def trained(network: str, arm: str, batch: int, seed: int, images: int) -> dict[str, Any]:
    """What a run comes to."""
    folder = demo_folder()
    overrides = NETWORKS[network] | {
        "data.paths": [str(folder / "films"), str(folder / "mri")],
        "data.labels": str(demo_labels()), "train.seed": seed, "train.effective_batch": batch,
        "train.micro_batch": min(batch, MICRO_BATCH[network]), "train.steps": images // batch,
        "report.page": False, "report.snapshots": 0, "checkpoint.every": 10**6,
        "health.on_collapse": "warn", **ARMS[arm](batch),
    }  # fmt: skip
    started = time.process_time()
    with tempfile.TemporaryDirectory() as place:
        run = pretrain(overrides, Path(place) / "run", resume=False, console=Console(quiet=True))
        results = json.loads(run.evaluation.read_text())["results"]
        lines = run.health.read_text().splitlines() if run.health.is_file() else []
    figures = {
        f"{name} {task}": results[name][task][setting]["balanced_accuracy"]["value"]
        for name in results
        for task, setting in (("knn", "20"), ("linear", "all"))
    }
    states = [json.loads(line) for line in lines]
    return {
        **{name: round(value, 4) for name, value in figures.items()},
        "states": named(states),
        "cpu_seconds": round(time.process_time() - started),
    }


def named(lines: list[dict[str, Any]]) -> list[str]:
    """What health named, from which step on, and whether it was over before the end."""
    over = {(line["state"], line["since"]) for line in lines if line.get("resolved")}
    found = dict.fromkeys((line["state"], line["since"]) for line in lines)
    return [
        f"{state} from step {since}" + (", then over" if (state, since) in over else "")
        for state, since in found
    ]


def print_table(lines: list[dict[str, Any]]) -> None:
    """Means over seeds, in Markdown."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["network"], line["arm"], line["batch"]), []).append(line)
    columns = ("model knn", "random knn", "pixels knn", "model linear", "random linear")
    head = ("network", "centering", "batch", "seeds", *columns, "lowest knn", "named")
    print("| " + " | ".join(head) + " |")
    print("|---|---|---:|---:|" + "---:|" * (len(columns) + 1) + "---|")
    for (network, arm, batch), group in sorted(groups.items()):
        means = [float(np.mean([line[column] for line in group])) for column in columns]
        states = "; ".join(sorted({state for line in group for state in line["states"]})) or "-"
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        lowest = min(line["model knn"] for line in group)
        print(f"| {network} | {arm} | {batch} | {len(group)} | {cells} | {lowest:.3f} | {states} |")


if __name__ == "__main__":
    main()
