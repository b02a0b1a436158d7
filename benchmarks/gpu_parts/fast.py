"""How fast are steps? Images a second, MFU, memory, the price of exactness, and where time goes.

Whole steps with optimizer and teacher on random grey canvases of 256 pixels, in bf16: 2 global
crops of 224, 8 local ones of 96 pixels, 65,536 prototypes, Sinkhorn-Knopp. MFU is the operations
that an image needs (nothing counted twice, dropped branches not counted) over what a large matrix
product reaches on this card. On a CPU a tiny network in float32.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.exact_overhead import SIDE, STEP, exact, naive, steps_of
from benchmarks.gpu_parts.breakdown import Breakdown
from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.results import Results, SkippedError
from dino_x.cost import memory
from dino_x.cost.flops import needed
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.distributed.shares import divisors
from dino_x.machine.device import GIB, peak_memory_gib
from dino_x.machine.out_of_memory import OutOfMemory, caught
from dino_x.training.steps import Steps
from tests.tiny import TINY

TITLES = {"vits16": "ViT-S/16", "vitb16": "ViT-B/16", "vitl16": "ViT-L/16", "vit-tiny": "tiny ViT"}
WANTED = {"vits16": 1900, "vitl16": 250}  # images/s on one H100
WANTED_MFU = {"vitl16": 0.45}
MOST_MICRO = 128
ROOM = 0.8  # of what is free, for a step
TURNS = 3
COMPILING = 60.0  # seconds, about
GROUP = 8  # images of a KoLeo group


@dataclass(frozen=True)
class Scale:
    """What is measured at which size."""

    models: tuple[str, ...]
    batch: int
    settings: dict[str, Any]


CARD = Scale(("vits16", "vitl16", "vitb16"), 256, {"train.precision": "bf16"})
TINY_STEP = {n: v for n, v in TINY.items() if n.split(".")[0] in ("model", "head", "views")}
TOY = Scale(("vit-tiny",), 8, TINY_STEP)


def measure(card: Card, results: Results, more: dict[str, str]) -> None:
    """Most important first: the sizes eager, the price of exactness, the breakdown, compiled."""
    card.need_bf16()
    scale = TOY if card.toy else CARD
    results.attempt("a large matrix product", lambda: matrix_product(card, results))
    for model in scale.models:
        sizes = partial(speed, card, results, scale, model)
        results.attempt(f"{TITLES[model]}, eager", sizes, needs=5)
    first = scale.models[0]
    results.each(
        {
            "what exactness costs": lambda: exactness(card, results, scale, first),
            "where a step goes": lambda: where_it_goes(card, results, scale, first),
        },
        needs=5,
    )
    for model in scale.models:
        sizes = partial(speed, card, results, scale, model, compiled=True)
        results.attempt(f"{TITLES[model]}, compiled", sizes, needs=COMPILING)


def matrix_product(card: Card, results: Results) -> None:
    """The peak that MFU is a share of."""
    kind = "float32" if card.toy else "bf16"
    results.found(
        f"a large matrix product, {kind}", f"{card.peak / 1e12:.3g} TFLOP/s", operations=card.peak
    )


def speed(card: Card, results: Results, scale: Scale, model: str, compiled: bool = False) -> None:
    """One model: images a second, MFU and peak memory."""
    steps = largest(card, scale, model, {"train.compile": compiled})
    turn = one_step(steps)
    turn()  # compiles, and loads libraries
    forget_peak(card)
    images = scale.batch / statistics.median(card.seconds(turn) for _ in range(TURNS))
    step = step_of(steps)
    mfu = images * needed(step) / card.peak
    peak = peak_memory_gib(card.device)
    wanted = [f"{WANTED[model]:,} images/s (one H100)"] if model in WANTED else []
    wanted += [f"MFU {WANTED_MFU[model]:.0%}"] if model in WANTED_MFU else []
    holds = None
    if wanted and "H100" in card.described()["device"]:
        holds = images >= WANTED[model] and mfu >= WANTED_MFU.get(model, 0)
    micro = steps.options.train.micro_batch
    results.found(
        f"{TITLES[model]}, {'compiled' if compiled else 'eager'}, batch {scale.batch} in"
        f" micro-batches of {micro}",
        f"{images:,.3g} images/s, MFU {mfu:.0%}, {peak:.1f} GiB", ", ".join(wanted), holds,
        images_per_second=images, mfu=mfu, peak_gib=peak, micro_batch=micro,
    )  # fmt: skip


def step_of(steps: Steps) -> Step:
    """A step as numbers."""
    return Step.of(steps.options, steps.student, canvas=SIDE, channels=1)


def largest(card: Card, scale: Scale, model: str, more: dict[str, Any]) -> Steps:
    """Steps with the largest micro-batch that fits, by calculation; smaller if that was wrong.

    Raises: SkippedError if not even one image fits.
    """
    settings = {"model.name": model, "train.effective_batch": scale.batch} | scale.settings | more
    sizes = [size for size in divisors(scale.batch) if size <= MOST_MICRO]
    if card.toy:
        sizes = [size for size in sizes if size <= scale.batch // 2]
    for size in sorted(sizes, reverse=True):
        steps = steps_of(settings | {"train.micro_batch": size}, scale.batch)
        if not card.toy:
            numerics = Numerics.on(steps.options.train.precision, card.device)
            need = memory.still_taken(step_of(steps), numerics) / GIB
            if need > ROOM * card.free_gib:
                continue
        if fits(card, steps):
            return steps
        steps = None  # type: ignore[assignment]  # give its memory back before the next
        torch.cuda.empty_cache()
    raise SkippedError(f"not even one image fits in {card.free_gib:.0f} GiB")


def fits(card: Card, steps: Steps) -> bool:
    """Whether a step runs; on a CPU it does."""
    if card.toy:
        return True
    try:
        with caught():
            one_step(steps)()
    except OutOfMemory:
        steps.state.optimizer.zero_grad(set_to_none=True)
        return False
    return True


def one_step(steps: Steps) -> Callable[[], None]:
    """A whole step with its update, in the middle of a run."""

    def step() -> None:
        steps.state.done = STEP
        values = steps.begin()
        steps.update(STEP, steps.gradients(STEP, values), values)

    return step


def forget_peak(card: Card) -> None:
    """Forget how much memory was taken before."""
    if not card.toy:
        torch.cuda.reset_peak_memory_stats(card.device)


def exactness(card: Card, results: Results, scale: Scale, model: str) -> None:
    """Gradients with targets, and KoLeo as well, of the whole batch, against naive accumulation."""
    micro = max(size for size in divisors(scale.batch) if size <= scale.batch // 4)
    group = min(GROUP, micro)
    settings = {"model.name": model, "train.effective_batch": scale.batch} | scale.settings
    settings |= {"train.micro_batch": micro, "loss.koleo_group": group}
    parts = steps_of(settings, scale.batch)
    whole = steps_of(settings | {"loss.koleo_group": "effective"}, scale.batch)
    off = steps_of(settings | {"loss.regularizer": "none"}, scale.batch)
    ways = {
        "KoLeo off": partial(exact, off),
        f"Sinkhorn-Knopp over all, KoLeo in groups of {group}": partial(exact, parts),
        "Sinkhorn-Knopp and KoLeo over all": partial(exact, whole),
    }
    limits = (None, 1.05, 1.20)
    base = partial(naive, parts, group)
    for way in (base, *ways.values()):
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        before = card.seconds(base)
        for name, way in ways.items():
            times[name].append(card.seconds(way) / before)
    for (name, ratios), limit in zip(times.items(), limits, strict=True):
        ratio = statistics.median(ratios)
        results.found(
            f"time against naive accumulation, {TITLES[model]}, micro-batches of {micro}: {name}",
            f"x {ratio:.2f}", "" if limit is None else f"at most x {limit:.2f}",
            None if card.toy or limit is None else ratio <= limit, ratio=ratio,
        )  # fmt: skip


def where_it_goes(card: Card, results: Results, scale: Scale, model: str) -> None:
    """The shares of a step's parts, each waited for, and how often the host waits otherwise."""
    steps = largest(card, scale, model, {})
    turn = one_step(steps)
    turn()
    plain = statistics.median(card.seconds(turn) for _ in range(TURNS))
    breakdown = Breakdown(card)
    with breakdown.watching():
        card.seconds(turn)
    total = sum(breakdown.seconds.values())
    parts = sorted(breakdown.seconds.items(), key=lambda item: -item[1])
    results.found(
        f"where a step of {TITLES[model]} goes, each part waited for",
        ", ".join(f"{name} {part / total:.0%}" for name, part in parts),
        seconds=dict(parts),
    )
    results.found(
        f"a step of {TITLES[model]} whose parts are waited for, against one whose are not",
        f"x {total / plain:.2f}", ratio=total / plain,
    )  # fmt: skip
    if not card.toy:
        busy = breakdown.busy(turn)
        results.found(f"share of a step of {TITLES[model]} in which the GPU computes",
                      f"{busy:.0%}", share=busy)  # fmt: skip
