"""Is the calculated memory right? Beside what tensors ask for, and what a CPU process takes.

    python benchmarks/plan_memory.py [--sizes 2 4 8] [--map BYTES]

Each line is a process of its own that trains a small ViT for three steps of 8 images from memory.
"asked for" is by torch.profiler, in one more process, as it costs time and memory too. --map sets
MALLOC_MMAP_THRESHOLD_, from which size on glibc gives a piece of memory pages of its own; then less
is lost in gaps, and more time with the kernel.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from dino_x.config.resolve import Facts, resolve
from dino_x.cost import memory
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.model.backbone import build_backbone
from dino_x.planning.measure import made_up, trial_steps
from dino_x.training.schedules import values_at

CANVAS, BATCH, STEPS = 160, 8, 3
CPU = torch.device("cpu")
GIB = 2**30
SAID = {
    "preset": "dinov3", "model.name": "vit-tiny", "model.depth": 6, "views.global_size": 112,
    "views.local_size": 48, "head.prototypes": 4096, "train.effective_batch": BATCH,
    "train.steps": 10, "loss.centering": "sinkhorn", "optim.freeze_last_layer": 0,
}  # fmt: skip


def status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def asked_for(work: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    now = peak = 0
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def child(size: int, precision: str, profiled: bool) -> None:
    overrides = SAID | {"train.micro_batch": size, "train.precision": precision}
    options = resolve(overrides, Facts(100)).options
    backbone = build_backbone(options.model, options.views.global_size, 0)
    steps = trial_steps(options, backbone, made_up(size, 1, CANVAS), 100, CPU)
    step = Step.of(options, steps.student, micro_batch=size, canvas=CANVAS)

    def train(count: int) -> None:
        for number in range(count):
            values = values_at(number, options)
            steps.update(number, steps.gradients(number, values), values)

    before, started = status("VmRSS"), time.perf_counter()
    asked = 0
    if profiled:  # the first step makes what stays, the optimizer's state
        asked = asked_for(lambda: train(2))
    else:
        train(STEPS)
    found = {
        "calculated": memory.still_needed(step, Numerics.on(precision, CPU)),
        "asked": asked,
        "taken": status("VmHWM") - before,
        "speed": STEPS * BATCH / (time.perf_counter() - started),
    }
    print("\n" + json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--map", type=int, help="bytes")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        size, precision, profiled = arguments.child
        child(int(size), precision, profiled == "profiled")
        return
    environment = dict(os.environ)
    if arguments.map:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(arguments.map)
    table = Table(
        "precision", "micro-batch", "calculated, GiB", "asked for", "ratio", "process grows by",
        "times asked for", "img/s", box=None,
    )  # fmt: skip
    for precision in ("fp32", "bf16"):
        for size in arguments.sizes:
            both = []
            for how in ("plain", "profiled"):
                command = [sys.executable, __file__, "--child", str(size), precision, how]
                done = subprocess.run(command, capture_output=True, env=environment, check=True)
                both.append(json.loads(done.stdout.decode().strip().splitlines()[-1]))
            plain, profiled = both
            asked = profiled["asked"]
            table.add_row(
                precision, str(size), f"{plain['calculated'] / GIB:.3f}", f"{asked / GIB:.3f}",
                f"{plain['calculated'] / asked:.2f}", f"{plain['taken'] / GIB:.3f}",
                f"{plain['taken'] / asked:.2f}", f"{plain['speed']:.1f}",
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
