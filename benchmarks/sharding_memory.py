"""What does train.shard=full save? Peak memory of each process, beside a whole network.

    python benchmarks/sharding_memory.py [--processes 1 2 4] [--model vits16] [--prototypes 8192]

CPU processes on this machine (Linux) train on random images. Memory is the peak of the second step,
over what the process took before it built anything; what is freed goes back to the machine at once
(MALLOC_MMAP_THRESHOLD_), so that it is not counted. Bytes a weight are by the number of weights of
backbone and heads: whole, they are 4 for each of student, gradient and teacher and 8 for AdamW.
Whole networks take the same in any number of processes.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from effective_batch_memory import make_images
from rich.console import Console
from rich.table import Table

from dino_x.cli import main as dino_x
from dino_x.training.steps import Steps

STEPS = 2  # the memory of the second is looked at


def memory(name: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak since it was forgotten) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def train(place: Path, model: str, prototypes: str, shard: str) -> None:
    """Runs in each process; writes what it took."""
    before, update = memory("VmRSS"), Steps.update
    found: dict[str, int] = {}

    def watched(self: Steps, step: int, *rest: Any) -> float:
        norm = update(self, step, *rest)
        if step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        found["peak"] = memory("VmHWM") - before
        found["weights"] = sum(weight.numel() for weight in self.student.parameters())
        return norm

    Steps.update = watched  # type: ignore
    batch = 4  # a micro-batch in each of four processes
    status = dino_x(
        ["pretrain", "--data", str(place / "images"), "--out", str(place / "run"),
         "--model", model, "--preset", "dinov3", "--centering", "sinkhorn", "--steps", str(STEPS),
         "--effective-batch", str(batch), "--micro-batch", "1", "--prototypes", prototypes,
         "--device", "cpu", "--set", f"train.shard={shard}", "views.global_size=32",
         "views.local_size=16", "views.local_crops=2", "data.cache_mb=0", "data.workers=1",
         "optim.freeze_last_layer=0", "health.every=0", "online.every=0", "report.page=false",
         "report.snapshots=false"]
    )  # fmt: skip
    (place / f"found-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    sys.exit(status)


def measure(count: int, shard: str, arguments: argparse.Namespace) -> dict[str, int]:
    """The largest of all processes."""
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place, port = Path(name), str(free.getsockname()[1])
        free.close()
        (place / "images").mkdir()
        make_images(place / "images", 4, 64)
        command = [sys.executable, __file__, "--child", name, arguments.model, arguments.prototypes]
        several = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes = [
            subprocess.Popen(
                [*command, shard],
                env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
                | ({**several, "RANK": str(r), "LOCAL_RANK": str(r)} if count > 1 else {}),
                stdout=subprocess.DEVNULL,
            )
            for r in range(count)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit("a process failed, see above")
        found = [json.loads(file.read_text()) for file in place.glob("found-*.json")]
    return {name: max(values[name] for values in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="vits16")
    parser.add_argument("--prototypes", default="8192")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        place, model, prototypes, shard = arguments.child
        train(Path(place), model, prototypes, shard)
    columns = ("processes", "train.shard", "peak of each, GiB", "bytes a weight")
    table = Table(*columns, box=None)
    for count in arguments.processes:
        shard = "full" if count > 1 else "none"
        found = measure(count, shard, arguments)
        gib, weights = found["peak"] / 2**30, found["weights"]
        table.add_row(str(count), shard, f"{gib:.2f}", f"{found['peak'] / weights:.1f}")
    console = Console()
    console.print(f"{arguments.model}: {weights / 1e6:.0f} million weights, fp32")
    console.print(table)


if __name__ == "__main__":
    main()
