"""Beside lightly-train: its dinov2 method at the same size, crops, batch and precision.

What is equal and what is not stands in training.py, whose commands these are.
"""

import argparse
import os
import shutil
import statistics

from benchmarks import training
from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.results import Results, SkippedError

WANTED_SPEED, WANTED_MEMORY = 1.5, 0.5
GIB = 2**30
SETTINGS = {  # of training.py
    True: {"batch": 2, "steps": [1, 4], "steps_an_epoch": 1, "peer_workers": 0},
    False: {"batch": 128, "steps": [8, 72], "steps_an_epoch": 8},
}


def measure(card: Card, results: Results, more: dict[str, str]) -> None:
    """Images a second and memory of both, in one run."""
    command = more.get("peer") or shutil.which("lightly-train")
    if command is None:
        raise SkippedError("lightly-train is not installed; --peer names its command")
    if not shutil.which(command):
        raise SkippedError(f"there is no command {command}")
    card.need_bf16()
    workers = max(1, (os.cpu_count() or 1) - 1)
    settings = {"peer_workers": workers} | SETTINGS[card.toy]
    arguments = argparse.Namespace(
        peer=command, micro_batches=[settings["batch"]], drop_path=0.1, repeats=1, json=None,
        set=[], precision="fp32" if card.toy else "bf16", **settings,
    )  # fmt: skip
    batch = arguments.batch
    try:
        costs = training.measured(arguments)
    except SystemExit as error:  # a command that failed, with its last words
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    if any(one.seconds <= 0 for way in costs.values() for one in way):
        raise SkippedError(
            "its few steps took less time than starts differ by: the machine is busy"
        )
    peer = costs.pop("lightly-train")
    (ours,) = costs.values()
    speeds = [statistics.median(batch / one.seconds for one in way) for way in (ours, peer)]
    memories = [max(one.memory for one in way) / GIB for way in (ours, peer)]
    faster, memory = speeds[0] / speeds[1], memories[0] / memories[1]
    for name, speed, gib in zip(("DINO-X", "lightly-train"), speeds, memories, strict=True):
        results.found(
            f"{name}, ViT-S/14, batch {batch}, as commands with reading",
            f"{speed:,.3g} images/s, {gib:.1f} GiB", images_per_second=speed, gib=gib,
        )  # fmt: skip
    results.found("images/s against lightly-train", f"x {faster:.2f}", f"x {WANTED_SPEED}",
                  None if card.toy else faster >= WANTED_SPEED, ratio=faster)  # fmt: skip
    results.found("memory against lightly-train", f"x {memory:.2f}", f"x {WANTED_MEMORY}",
                  None if card.toy else memory <= WANTED_MEMORY, ratio=memory)  # fmt: skip
