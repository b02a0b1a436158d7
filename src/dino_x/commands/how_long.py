"""What a long run on a CPU says before its first step: how long it takes, and what is quicker."""

import torch
from rich.console import Console

from dino_x.cost import flops
from dino_x.cost.memory import Numerics
from dino_x.planning import measure
from dino_x.planning.outlook import PATIENCE, outlook
from dino_x.progress import duration, roughly
from dino_x.training.prepare import Prepared, step_of

BEST_RATE = 1e11  # FLOP/s of a core, more than any gives to a training: shorter runs say nothing
QUICK = 5.0  # seconds: the first try of all is slow, and such a try is made again


def say_how_long(prepared: Prepared, console: Console) -> None:
    """Measure a step on one or two images, and say what that means; nothing for a short run."""
    trainer = prepared.trainer
    options, steps = trainer.options, trainer.options.train.steps
    assert steps is not None
    left = steps - trainer.done
    if trainer.cutter.device.type != "cpu" or trainer.ranks.world_size > 1 or left <= 0:
        return
    step = step_of(trainer.steps, prepared.loader.form).at(prepared.micro_batch.size)
    numerics = Numerics.on(options.train.precision, trainer.cutter.device)
    work = left * step.effective_batch * sum(flops.by_part(step, numerics.working).values())
    if work / (BEST_RATE * torch.get_num_threads()) < PATIENCE / 4:
        return
    with console.status("measuring how long a step takes"):
        seconds = measure.seconds(trainer.steps, 1)
        if seconds < QUICK:
            seconds = measure.seconds(trainer.steps, 1)
    look = outlook(step, 1 / seconds, left)
    if not look.is_long:
        return
    took = f"about {roughly(look.seconds)} on this machine, {duration(look.seconds / left)} a step"
    for name, line in ({"time": took} | look.lines()).items():
        console.print(f"{name:<10}{line}", style="yellow", highlight=False, soft_wrap=True)
