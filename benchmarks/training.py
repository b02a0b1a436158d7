"""How fast is training, in how much memory? Images/s against lightly-train's DINOv2, in one run.

    python -m venv PEER && PEER/bin/pip install lightly-train
    python benchmarks/training.py --peer PEER/bin/lightly-train [--micro-batches 4 16]

Both train a ViT-S/14 without registers on the same random RGB images, 2 global crops of 224 and 8
local of 98 pixels, batch 16, 65,536 prototypes in two separate heads of 3 layers, Sinkhorn-Knopp,
KoLeo, masks of 0.1 to 0.5 of the patches of half the global crops, the prototypes trained from the
first step, and stochastic depth of the same rate. Left as each has it: positions (RoPE here,
learned there), which intensities are changed how, and the schedules, which cost nothing.

Each is run as its command for a few steps and for more; the difference is what a step takes, start
and end left out, reading and augmenting images included. Ways take turns. Without --peer only this
project is measured. MFU: the operations that a step needs (dropped branches not counted, nothing
counted twice), over what a large matrix product reaches here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from dino_x.config.resolve import Facts, resolve
from dino_x.cost.flops import needed
from dino_x.cost.shapes import Step
from dino_x.machine.device import describe_device
from dino_x.machine.products import fast_products
from dino_x.model.teacher import build_student

SIDE = 256
GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Of a whole command: seconds, processor seconds, largest memory in bytes.

    Memory is that of the GPU if there is one, over what was taken before; else of the process.
    """

    seconds: float
    processor: float
    memory: float


def make_images(folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def cost_of(command: list[str], log: Path) -> Cost:
    """Run a command to its end, its words in a file."""
    started = time.perf_counter()
    with log.open("w") as words, GpuMemory() as of_gpu:
        child = subprocess.Popen(command, stdout=words, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-3000:]}")
    memory: float = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        memory = of_gpu.most
    return Cost(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, memory)


class GpuMemory:
    """The most memory of the first GPU that other processes take within a block, in bytes."""

    def __init__(self) -> None:
        self.most = 0.0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "GpuMemory":
        if torch.cuda.is_available():
            self._before = self._taken()
            self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watch.is_alive():
            self._watch.join()

    def _taken(self) -> float:
        free, total = torch.cuda.mem_get_info(0)
        return total - free

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most = max(self.most, self._taken() - self._before)


def ours(
    images: Path, micro: int, arguments: argparse.Namespace, out: Path, steps: int
) -> list[str]:
    """The command of this project."""
    return [
        sys.executable, "-m", "dino_x.cli", "pretrain", "--data", str(images), "--out", str(out),
        "--preset", "dinov3", "--model", "vits16", "--steps", str(steps),
        "--effective-batch", str(arguments.batch), "--micro-batch", str(micro),
        "--precision", arguments.precision,
        "--set", *(f"{name}={value}" for name, value in settings_of(arguments).items()),
    ]  # fmt: skip


def settings_of(arguments: argparse.Namespace) -> dict[str, object]:
    """What this project is told with --set."""
    return {
        "model.patch_size": 14, "model.registers": 0, "model.drop_path": arguments.drop_path,
        "views.local_size": 98, "loss.centering": "sinkhorn", "optim.freeze_last_layer": 0,
        "data.verify": "headers", "online.every": 0, "report.page": "false",
        "report.snapshots": "false", "health.every": 0,
    } | dict(pair.split("=", 1) for pair in arguments.set)  # fmt: skip


def theirs(images: Path, arguments: argparse.Namespace, out: Path, steps: int) -> list[str]:
    """lightly-train's command: an epoch is ``steps_an_epoch`` steps, for there are as many images.

    With one step an epoch, images are read in its own process; with more, in the workers asked for,
    whose start at each epoch then matters less.
    """
    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[arguments.precision]
    return [
        arguments.peer, "pretrain", f"out={out}", f"data={images}",
        "model=dinov2/vits14-notpretrained", "method=dinov2", f"batch_size={arguments.batch}",
        f"epochs={steps // arguments.steps_an_epoch}", f"num_workers={arguments.peer_workers}",
        f"precision={precision}",
        f"accelerator={'gpu' if torch.cuda.is_available() else 'cpu'}",
        f"model_args.drop_path_rate={arguments.drop_path}",
        "method_args.center_method=sinkhorn_knopp", "method_args.ibot_separate_head=true",
        "method_args.student_freeze_last_layer_steps=0", "transform_args.local_view.num_views=8",
        "transform_args.local_view.view_size=[98,98]", "callbacks.model_checkpoint=null",
    ]  # fmt: skip


def needed_operations(arguments: argparse.Namespace) -> float:
    """Operations that an image needs with the settings of ``ours``."""
    overrides: dict[str, object] = {
        "preset": "dinov3", "model.name": "vits16", "train.steps": 1,
        "train.effective_batch": arguments.batch, "train.precision": arguments.precision,
    }  # fmt: skip
    options = resolve(overrides | settings_of(arguments), Facts(arguments.batch)).options
    with torch.device("meta"):
        student = build_student(options)
    return needed(Step.of(options, student, canvas=SIDE, channels=3))


def per_step(few: Cost, many: Cost, steps: int) -> Cost:
    """Of one step; memory is of the longer run."""
    return Cost(
        (many.seconds - few.seconds) / steps, (many.processor - few.processor) / steps, many.memory
    )


def peak_operations() -> float:
    """Operations a second of a large float32 product on a CPU, all threads, the best of several."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = 0.0
    with fast_products(torch.device("cpu")):
        for _ in range(10):
            started = time.perf_counter()
            a @ b
            best = max(best, 2 * 2048**3 / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", help="lightly-train's command, in an environment of its own")
    parser.add_argument("--batch", type=int, default=16, help="images of a step")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--drop-path", type=float, default=0.1, help="lightly-train's for a ViT-S")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, nargs=2, default=[1, 4], help="of the two runs")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps-an-epoch", type=int, default=1, help="of lightly-train")
    parser.add_argument("--peer-workers", type=int, default=0, help="of lightly-train")
    parser.add_argument("--set", nargs="*", default=[], help="more settings of this project")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    show(measured(arguments), arguments)


def measured(arguments: argparse.Namespace) -> dict[str, list[Cost]]:
    """What a step costs, by way; ways take turns."""
    few, many = arguments.steps
    costs: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        make_images(images, arguments.batch * arguments.steps_an_epoch)
        for repeat in range(arguments.repeats):
            ways: dict[str, Callable[[Path, int], list[str]]] = {
                f"DINO-X, micro-batch {micro}": partial(ours, images, micro, arguments)
                for micro in arguments.micro_batches
            }
            if arguments.peer:
                ways["lightly-train"] = partial(theirs, images, arguments)
            for name, command in ways.items():
                found = {}
                for steps in (few, many):
                    out = Path(place) / f"{name}-{steps}-{repeat}"
                    found[steps] = cost_of(command(out, steps), Path(place) / "log")
                costs.setdefault(name, []).append(per_step(found[few], found[many], many - few))
    return costs


def show(costs: dict[str, list[Cost]], arguments: argparse.Namespace) -> None:
    """The table: medians over the repeats; speed and memory against the peer, turn by turn."""
    console, peak = Console(), peak_operations()
    operations = needed_operations(arguments)
    console.print(
        f"{describe_device(torch.device('cpu'))}, PyTorch {torch.__version__},"
        f" {arguments.precision}, stochastic depth {arguments.drop_path};"
        f" matrix products reach {peak / 1e9:.0f} GFLOP/s,"
        f" an image needs {operations / 1e9:.0f} GFLOP"
    )
    table = Table("", "images/s", "processor s/image", "peak memory, GiB", "MFU",
                  "images/s against peer", "processor time against peer", box=None)  # fmt: skip
    peer = costs.get("lightly-train")
    lines = []
    for name, ones in costs.items():
        speed = statistics.median(arguments.batch / one.seconds for one in ones)
        processor = statistics.median(one.processor / arguments.batch for one in ones)
        memory = max(one.memory for one in ones) / GIB
        line = {
            "way": name, "images_per_second": speed, "processor_s_per_image": processor,
            "memory_gib": memory, "mfu": speed * operations / peak,
        }  # fmt: skip
        if peer:
            pairs = list(zip(ones, peer, strict=True))
            line["faster"] = statistics.median(other.seconds / one.seconds for one, other in pairs)
            line["cheaper"] = statistics.median(
                other.processor / one.processor for one, other in pairs
            )
        lines.append(line)
        table.add_row(
            name, f"{speed:.2f}", f"{processor:.2f}", f"{memory:.1f}", f"{line['mfu']:.0%}",
            *(f"x {line[key]:.2f}" for key in ("faster", "cheaper") if peer),
        )  # fmt: skip
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
