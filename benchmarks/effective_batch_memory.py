"""Does memory grow with the effective batch? Peak memory of training at several, one micro-batch.

    python benchmarks/effective_batch_memory.py [--batches 64 256 1024] [--micro-batch 16]
        [--regularizer sigreg]

Each effective batch trains on the same number of images, two steps at the largest, with
Sinkhorn-Knopp and KoLeo, or SIGReg, over all of it, in a process of its own, on random images that
are made on the spot. The same number, because the memory allocator of a CPU process grows a little
with every step. The cache of decoded images is off: it is bounded by an option of its own. On a GPU
the peak is of its allocator, else of the process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from dino_x.cli import main as dino_x


def make_images(folder: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:04d}.png")


def train(
    folder: Path, run: Path, batch: int, steps: int, micro_batch: int, regularizer: str
) -> None:
    """Runs in the child process; prints nothing but what training prints."""
    status = dino_x(
        ["pretrain", "--data", str(folder), "--out", str(run), "--model", "vit-tiny",
         "--preset", "dinov3", "--centering", "sinkhorn", "--steps", str(steps),
         "--effective-batch", str(batch), "--micro-batch", str(micro_batch),
         "--set", "model.depth=4", "views.global_size=112", "views.local_size=48",
         "head.prototypes=16384", "data.cache_mb=0", "optim.freeze_last_layer=0",
         f"loss.regularizer={regularizer}"]
    )  # fmt: skip
    sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--regularizer", choices=("koleo", "sigreg", "none"), default="koleo")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, run, batch, steps = arguments.child
        numbers = int(batch), int(steps), arguments.micro_batch
        train(Path(folder), Path(run), *numbers, arguments.regularizer)
    table = Table("effective batch", "peak memory, GiB", "against the first", "img/s", box=None)
    first = None
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        images.mkdir()
        make_images(images, max(arguments.batches), 160)
        for batch in arguments.batches:
            run = Path(place) / str(batch)
            steps = 2 * max(arguments.batches) // batch
            subprocess.run(
                [sys.executable, __file__, "--micro-batch", str(arguments.micro_batch),
                 "--regularizer", arguments.regularizer,
                 "--child", str(images), str(run), str(batch), str(steps)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            first = first or last["memory_gib"]
            ratio = f"x {last['memory_gib'] / first:.3f}"
            speed = f"{last['images_per_second']:.1f}"
            table.add_row(str(batch), f"{last['memory_gib']:.3f}", ratio, speed)
    Console().print(table)


if __name__ == "__main__":
    main()
