"""Does it matter over how many images Sinkhorn-Knopp, centers and KoLeo look at the batch?

    python benchmarks/batch_scope.py cxr_pneumonia_224 --out scope.jsonl            # two CPU cores
    python benchmarks/batch_scope.py cxr_pneumonia_224 --out scope.jsonl --scale gpu
    python benchmarks/batch_scope.py --out scope.jsonl --table                      # only the table

The same small model, films, seeds and number of images seen, under each arm; see ``arms``. Each run
is one line of ``--out`` as soon as it is done; what is there already is not run again.

"Per micro-batch" is what accumulation does elsewhere: targets, KoLeo and the running center are
those of each micro-batch, its gradients are averaged, and optimizer and teacher move once a step.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judged_films import features_of, read_films, scores
from rich.console import Console

from dino_x.config.options import Options
from dino_x.config.resolve import Facts, resolve
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.index.index import Index
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.evaluation.baselines import (
    PIXEL_COMPONENTS,
    pixel_encoder,
    principal_components,
    random_weights,
)
from dino_x.evaluation.embed import encode
from dino_x.exact import CenteringState, StepResult
from dino_x.exact.statistics import KoLeo
from dino_x.machine.device import choose_device, describe_device, dtype_of
from dino_x.training.optimizer import set_values
from dino_x.training.schedules import StepValues, values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.step.planned_batch import PlannedBatch
from dino_x.training.steps import Steps

COMMON = {
    "preset": "small", "model.name": "vit-tiny", "optim.lr": 0.003, "optim.lr_batch": 256,
    "loss.floor": 1,
    "teacher.temperature_start": 0.03, "teacher.temperature": 0.03, "loss.center_batch": None,
}  # fmt: skip
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {
        "images_seen": 15_360, "effective": (16, 64, 256), "micro": (4, 16), "queue": 1024,
        "settings": {
            "model.width": 96, "model.depth": 3, "model.heads": 2, "views.global_size": 64,
        },
    },
    "gpu": {
        "images_seen": 1_280_000, "effective": (16, 64, 256, 1024), "micro": (4, 16),
        "queue": 4096,
        "settings": {
            "model.width": 384, "model.depth": 12, "model.heads": 6, "views.global_size": 224,
            "head.prototypes": 1024, "train.precision": "bf16",
        },
    },
}  # fmt: skip
RELAXATION = 0.3
TARGET_IMAGES = 256  # whose targets' entropy is measured at the end, in the arm's own way


@dataclass(frozen=True)
class Arm:
    """How a run looks at its batch.

    Attributes:
        effective: images a step.
        centering: sinkhorn or softmax.
        scope: images over which targets and center are computed.
        koleo: images among which KoLeo looks for neighbours.
        queue: rows of earlier steps in Sinkhorn-Knopp.
        relaxation: of its equal use of prototypes.
    """

    effective: int
    centering: str
    scope: int
    koleo: int
    queue: int = 0
    relaxation: float = 0.0

    @property
    def title(self) -> str:
        """Centering and what is special about it."""
        name = "Sinkhorn-Knopp" if self.centering == "sinkhorn" else "softmax"
        extra = f" + queue {self.queue:,}" if self.queue else ""
        return name + extra + (f", relaxed {self.relaxation:g}" if self.relaxation else "")


def arms(scale: dict[str, Any]) -> list[Arm]:
    """Every arm: the whole batch first, then micro-batches smaller than it."""
    found = []
    for batch in scale["effective"]:
        found += [
            Arm(batch, "softmax", batch, batch),
            Arm(batch, "sinkhorn", batch, batch),
            Arm(batch, "sinkhorn", batch, batch, queue=scale["queue"]),
            Arm(batch, "sinkhorn", batch, batch, relaxation=RELAXATION),
        ]
        for micro in (size for size in scale["micro"] if size < batch):
            found += [
                Arm(batch, "softmax", micro, micro),
                Arm(batch, "sinkhorn", micro, micro),
                Arm(batch, "sinkhorn", batch, micro),
            ]
    return found


class InMemory:
    """All canvases of the training films, decoded once for all runs of a process."""

    def __init__(self, index: Index, size: int, smallest_share: float) -> None:
        side = 16 * math.ceil(size / math.sqrt(smallest_share) / 16)
        form = CanvasForm(side=side, channels=1)
        loader = Loader(index, form, cache_bytes=0, workers=1)
        with loader:
            spans = np.array_split(np.arange(len(index)), max(1, len(index) // 64))
            parts = list(loader.prefetch(spans))
        self.pixels = torch.cat([part.pixels for part in parts])
        self.aspect = torch.cat([part.aspect for part in parts])

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """Canvases for each array of image numbers."""
        for indices in batches:
            yield Canvases(self.pixels[indices], self.aspect[indices])


@cache
def read_canvases(folder: Path, size: int, smallest_share: float) -> InMemory:
    return InMemory(read_films(folder).train, size, smallest_share)


def options_of(arm: Arm, seed: int, scale: dict[str, Any], images: int) -> Options:
    """The settings of a run: those of all runs, and what follows from the arm.

    The rate goes with the square root of the effective batch, the teacher's momentum to the power
    of it (``teacher.momentum_batch``), so that its memory is as many images long in all arms.
    """
    overrides = COMMON | scale["settings"]
    # How many images go through the network together changes nothing but time, unless it is what
    # the arm is about.
    micro = arm.scope if arm.scope < arm.effective else max(scale["micro"])
    overrides |= {
        "train.effective_batch": arm.effective,
        "train.micro_batch": min(micro, arm.effective),
        "train.steps": scale["images_seen"] // arm.effective,
        "train.seed": seed,
        "loss.centering": arm.centering,
        "loss.koleo_group": "effective" if arm.koleo == arm.effective else arm.koleo,
        "loss.queue": arm.queue,
        "loss.sinkhorn_relaxation": arm.relaxation,
    }
    return resolve(overrides, Facts(images)).options


def gradients(arm: Arm, steps: Steps, step: int, values: StepValues) -> StepResult:
    """Of the whole effective batch, or of one micro-batch after the other as elsewhere."""
    if arm.scope == arm.effective:
        return steps.gradients(step, values)
    steps.state.optimizer.zero_grad(set_to_none=True)
    terms: dict[str, float] = {}
    before = state = steps.state.centering
    exact_step = steps.exact_step
    statistic = exact_step.statistic
    assert isinstance(statistic, KoLeo)
    one_by_one = replace(exact_step, statistic=replace(statistic, group=arm.scope))
    for batch in scopes(arm, steps, step):
        result = one_by_one.gradient(batch, state, values.teacher_temperature)
        state = centers_of(result.next_state, before)
        for name, value in result.terms.items():
            terms[name] = terms.get(name, 0.0) + value
    return StepResult(terms, state)


def scopes(arm: Arm, steps: Steps, step: int) -> Iterator[PlannedBatch]:
    """A step's images, in batches of what targets are made over."""
    plan = steps.plan(step)
    batch = PlannedBatch.of(plan, arm.scope, steps.source, steps.cutter)
    return batch.each_alone()


def centers_of(state: CenteringState, before: CenteringState) -> CenteringState:
    """The new centers, with the queues as they were before the step."""
    return CenteringState(
        replace(state.dino, queue_QD=before.dino.queue_QD),
        replace(state.ibot, queue_QD=before.ibot.queue_QD),
    )


def target_entropy(arm: Arm, steps: Steps, temperature: float) -> float:
    """Mean entropy of the CLS targets as this arm makes them, over log K."""
    entropies: list[torch.Tensor] = []
    state = before = steps.state.centering
    count = steps.state.done
    prototypes_KD = steps.teacher.dino_head.prototypes()
    for step in range(count, count + max(1, TARGET_IMAGES // arm.effective)):
        for batch in scopes(arm, steps, step):
            targets = steps.exact_step.targets(batch, state, temperature)
            state = centers_of(targets.next_state, before)
            rows_RD = torch.cat([cls_VbD.flatten(0, 1) for cls_VbD in targets.cls_VbD])
            logits_RK = rows_RD.float() @ prototypes_KD.T.float() / temperature
            log_p_RK = (logits_RK + targets.dino_bias_K).log_softmax(dim=1)
            entropies.append(-(log_p_RK.exp() * log_p_RK).sum(dim=1))
    return float(torch.cat(entropies).mean()) / math.log(len(prototypes_KD))


def run(job: tuple[Path, str, Arm, int]) -> dict[str, Any]:
    """Train one arm with one seed and judge it."""
    folder, scale_name, arm, seed = job
    torch.set_num_threads(1)
    scale, films = SCALES[scale_name], read_films(folder)
    options = options_of(arm, seed, scale, len(films.train))
    canvases = read_canvases(folder, options.views.global_size, options.views.global_scale[0])
    device = choose_device("auto")
    cutter = Cutter(options, [0.5] * 3, [0.25] * 3, device, dtype_of(options.train.precision))
    steps = Steps(options, canvases, len(films.train), cutter)
    count, last = options.train.steps, []
    assert count is not None
    started, cpu_started = time.perf_counter(), time.process_time()
    steps.fill_queues()
    for step in range(count):
        values = values_at(step, options)
        set_values(steps.state.optimizer, steps.student, values)
        result = gradients(arm, steps, step, values)
        steps.update(step, result, values)
        steps.state.done = step + 1
        if step >= 0.9 * count:
            last.append(result.terms["dino"])
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    features_ND = features_of(steps.teacher.backbone.vit, options, cutter, folder)
    log_k = math.log(options.head.prototypes)
    return {
        "scale": scale_name, "arm": asdict(arm), "seed": seed,
        **scores(features_ND, films),
        "target_entropy": target_entropy(arm, steps, options.teacher.temperature),
        "loss_over_log_k": float(np.mean(last)) / log_k,
        "seconds": seconds, "cpu_seconds": cpu_seconds, "device": describe_device(device),
    }  # fmt: skip


def baselines(folder: Path, scale_name: str, seeds: list[int]) -> list[dict[str, Any]]:
    """Random weights by seed, and raw pixels, judged in the same way."""
    scale, films = SCALES[scale_name], read_films(folder)
    arm = arms(scale)[0]
    found = []
    for seed in seeds:
        options = options_of(arm, seed, scale, len(films.train))
        cutter = Cutter(options, [0.5] * 3, [0.25] * 3, torch.device("cpu"), torch.float32)
        steps = Steps(options, None, 1, cutter)  # type: ignore[arg-type]
        untrained = random_weights(steps.student.backbone.vit.config, seed)
        figures = scores(features_of(untrained, options, cutter, folder), films)
        found.append({"scale": scale_name, "arm": "random weights", "seed": seed, **figures})
    pixels = encode({"": pixel_encoder()}, films.labelled)[0][""]
    components = principal_components(pixels, films.split == "train", PIXEL_COMPONENTS)
    figures = scores(components, films)
    return [*found, {"scale": scale_name, "arm": "raw pixels", "seed": 0, **figures}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="cxr_pneumonia_224")
    parser.add_argument("--out", type=Path, required=True, help="a JSON line a run")
    parser.add_argument("--scale", choices=list(SCALES), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.folder is None:
            parser.error("name the folder of the films, or --table")
        measure(
            arguments.folder, arguments.out, arguments.scale, arguments.seeds, arguments.processes
        )
    print_table(read(arguments.out), arguments.scale)


def measure(folder: Path, out: Path, scale_name: str, seeds: list[int], processes: int) -> None:
    """Every run that ``out`` does not hold yet."""
    done = read(out)
    held = {(json.dumps(line["arm"]), line["seed"]) for line in done if line["scale"] == scale_name}
    if not any(isinstance(line["arm"], str) for line in done if line["scale"] == scale_name):
        for line in baselines(folder, scale_name, seeds):
            write(out, line)
    jobs = [
        (folder, scale_name, arm, seed)
        for seed in seeds
        for arm in arms(SCALES[scale_name])
        if (json.dumps(asdict(arm)), seed) not in held
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(stderr=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, line in enumerate(pool.imap_unordered(run, jobs), start=1):
            write(out, line)
            arm = Arm(**line["arm"])
            console.print(
                f"{number}/{len(jobs)}  batch {arm.effective}, {arm.title}, over {arm.scope}, KoLeo"
                f" over {arm.koleo}, seed {line['seed']}: kNN {line['knn']:.3f},"
                f" {line['cpu_seconds']:.0f} s", highlight=False,
            )  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


COLUMNS = {  # title: (key, digits)
    "kNN": ("knn", 3), "linear": ("linear", 3), "kNN, 3 classes": ("3 classes knn", 3),
    "rarest, AUROC": ("rare auroc linear", 3), "entropy / log K": ("target_entropy", 2),
    "loss / log K": ("loss_over_log_k", 2), "RankMe": ("rankme", 1), "CPU s": ("cpu_seconds", 0),
}  # fmt: skip


def print_table(lines: list[dict[str, Any]], scale_name: str) -> None:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = [line for line in lines if line["scale"] == scale_name]
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line["arm"]), []).append(line)
    known = [json.dumps(name) for name in ("random weights", "raw pixels")]
    known += [json.dumps(asdict(arm)) for arm in arms(SCALES[scale_name])]
    head = ["batch", "centering", "over", "KoLeo over", *COLUMNS]
    rows = []
    for key in (key for key in known if key in groups):
        arm = json.loads(key)
        if isinstance(arm, str):
            row = ["", arm, "", ""]
        else:
            described = Arm(**arm)
            numbers = [described.effective, described.title, described.scope, described.koleo]
            row = [str(number) for number in numbers]
        for name, digits in COLUMNS.values():
            values = [line[name] for line in groups[key] if name in line]
            row.append(mean_and_spread(values, digits))
        rows.append(row)
    print("| " + " | ".join(head) + " |")
    print("|---:|---|---:|---:|" + "---:|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def mean_and_spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    spread = np.std(values, ddof=1)
    return f"{np.mean(values):.{digits}f} ({spread:.{digits}f})"


if __name__ == "__main__":
    main()
