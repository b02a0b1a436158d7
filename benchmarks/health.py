"""What health and the online evaluation cost: CPU time a step with and without, in one run.

    python benchmarks/health.py

The demo's settings on its own films. Blocks of steps with health on and off take turns, so that a
busy machine slows both; the medians of CPU time are compared. What a look and an evaluation take is
measured by itself as well, and divided by the steps between two.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from former_demo import FORMER_DEMO
from rich.console import Console
from rich.table import Table

from dino_x.config.resolve import Facts, resolve, with_values
from dino_x.demo import demo_folder
from dino_x.losses.ranks import ALONE
from dino_x.runs.folder import RunFolder
from dino_x.training.images import read_index
from dino_x.training.metrics import step_metrics
from dino_x.training.prepare import online, prepare
from dino_x.training.schedules import values_at
from dino_x.training.trainer import Trainer


class Clock:
    """CPU seconds inside a function, added up call by call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: object) -> Any:
        """As the function."""
        started = time.process_time()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.process_time() - started


def one_step(trainer: Trainer, step: int, every: int) -> tuple[float, float]:
    """CPU seconds of a step, and of these the seconds in health, looking if ``every`` is 1."""
    health = trainer.health
    health.options = with_values(trainer.options, {"health.every": every})
    clocks = [Clock(f) for f in (health.before_update, health.after_update, health.judge)]
    started = time.process_time()
    values = values_at(step, trainer.options)
    result = trainer.steps.gradients(step, values, health.probe(step))
    clocks[0](result, trainer.student, trainer.teacher)
    norm = trainer.steps.update(step, result, values)
    seen = clocks[1](trainer.student, trainer.teacher)
    trainer.state.done = step + 1
    terms = result.terms | {"gradient_norm": norm} | seen
    done, device = trainer.done, trainer.cutter.device
    line = step_metrics(terms, values, trainer.options, done=done, seconds=1.0, device=device)
    clocks[2](line)
    return time.process_time() - started, sum(clock.seconds for clock in clocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prototypes", type=int, default=256)
    arguments = parser.parse_args()
    console = Console()
    overrides = FORMER_DEMO | {
        "data.paths": [str(demo_folder() / "films")],
        "data.verify": "headers",
        "head.prototypes": arguments.prototypes,
    }
    with tempfile.TemporaryDirectory() as place:
        index = read_index(resolve(overrides, Facts(1)).options, console)
        resolved = resolve(overrides, Facts(len(index)))
        options = resolved.options
        look_every, online_every = options.health.every, options.online.every
        assert online_every is not None
        run = RunFolder(Path(place))
        prepared = prepare(resolved, None, run, index, torch.device("cpu"), ALONE, console)
        evaluation, trainer = online(prepared, None), prepared.trainer
        assert evaluation is not None
        off: list[float] = []
        evaluated: list[float] = []
        quiet: list[float] = []
        look: list[float] = []
        inside_quiet: list[float] = []
        inside_look: list[float] = []
        one_step(trainer, 2, 0)  # images are read, threads start
        for step in range(3, 3 + 3 * arguments.rounds, 3):
            off.append(one_step(trainer, step, 0)[0])
            for kind, inside, every in (
                (quiet, inside_quiet, 10**6),
                (look, inside_look, 1),
            ):
                whole, part = one_step(trainer, step + (every > 1) + 1, every)
                kind.append(whole)
                inside.append(part)
            started = time.process_time()
            evaluation.evaluate(trainer.teacher.backbone)
            evaluated.append(time.process_time() - started)
        prepared.loader.close()
    plain = statistics.median(off)
    table = Table("what", "CPU seconds", "share of a step", box=None)
    rows = {
        "a step without health": plain,
        "a step with it, no look": statistics.median(quiet),
        "a step with a look": statistics.median(look),
        "  inside health, no look": statistics.median(inside_quiet),
        "  inside health, with a look": statistics.median(inside_look),
        "an online evaluation": statistics.median(evaluated),
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.4f}", f"{seconds / plain:.2%}")
    a_step = rows["  inside health, no look"] + rows["  inside health, with a look"] / look_every
    table.add_row(f"health, a look every {look_every}", f"{a_step:.4f}", f"{a_step / plain:.2%}")
    a_step = rows["an online evaluation"] / online_every
    table.add_row(f"online, every {online_every}", f"{a_step:.4f}", f"{a_step / plain:.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
