"""How long does a checkpoint hold up training, written at once and beside it?

    python benchmarks/checkpoint_stall.py [--prototypes 65536] [--steps 60]

One run writes its checkpoints in both ways by turns. A *stall* is what a checkpoint adds to the
time of the steps from its own to the next checkpoint, against steps in which nothing is written.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from effective_batch_memory import make_images
from rich.console import Console
from rich.table import Table

from dino_x.commands.pretrain import pretrain
from dino_x.runs import saving
from dino_x.training.trainer import Trainer

EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    seconds: list[float] = []  # of each step, with what is saved after it
    copies: list[float] = []
    writes: dict[bool, list[float]] = {False: [], True: []}
    next_step, copied, begin = Trainer.next_step, saving._copied_if_it_fits, saving.Saver.begin

    def timed_step(self: Trainer, *arguments: Any) -> None:
        before = time.perf_counter()
        next_step(self, *arguments)
        seconds.append(time.perf_counter() - before)

    def timed_copy(state: Any) -> Any:
        before = time.perf_counter()
        copy = copied(state)
        copies.append(time.perf_counter() - before)
        return copy

    def by_turns(self: saving.Saver, step: int, state: Any) -> None:
        self.options.background = background = step // EVERY % 2 == 0
        write = self.write

        def timed_write(*arguments: Any) -> None:
            before = time.perf_counter()
            write(*arguments)
            writes[background].append(time.perf_counter() - before)

        with patch.object(self, "write", timed_write):
            begin(self, step, state)

    Trainer.next_step, saving._copied_if_it_fits = timed_step, timed_copy  # type: ignore
    saving.Saver.begin = by_turns  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", 40, 64)
        run = pretrain(
            {
                "data.paths": [str(folder / "images")], "preset": "dinov3",
                "model.name": "vit-tiny", "head.prototypes": given.prototypes,
                "views.global_size": 64, "views.local_size": 32, "views.local_crops": 2,
                "train.effective_batch": given.batch, "train.micro_batch": given.batch,
                "train.steps": given.steps,
                "loss.centering": "sinkhorn", "checkpoint.every": EVERY, "report.page": False,
                "report.snapshots": False, "online.every": 0, "health.every": 0,
            },
            folder / "run", False, Console(quiet=True),
        )  # fmt: skip
        size = max(path.stat().st_size for path in run.checkpoints.glob("*.pt")) / 1e9
    show(seconds[:-1], copies, writes, size)


def show(
    seconds: list[float], copies: list[float], writes: dict[bool, list[float]], size: float
) -> None:
    table = Table("written", "write, s", "stall, s", "largest step, s", "in steps")
    plain = statistics.median(
        second for step, second in enumerate(seconds, 1) if step % EVERY > EVERY // 2
    )
    for background in (False, True):
        after = [
            seconds[step - 1 : step - 1 + EVERY // 2]
            for step in range(EVERY, len(seconds) - EVERY // 2, EVERY)
            if (step // EVERY % 2 == 0) == background
        ]
        stall = np.median([sum(part) - plain * len(part) for part in after])
        largest = np.median([max(part) for part in after]) - plain
        table.add_row(
            "beside training" if background else "at once",
            f"{np.median(writes[background]):.2f}", f"{stall:.2f}", f"{largest:.2f}",
            f"{largest / plain:.1f}",
        )  # fmt: skip
    Console().print(table)
    print(f"a step {plain:.2f} s; a checkpoint {size:.2f} GB; the copy {np.median(copies):.2f} s")


if __name__ == "__main__":
    main()
