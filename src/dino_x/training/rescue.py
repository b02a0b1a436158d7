"""One line when memory runs out in a step: what was tried, what fits, how to resume."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dino_x.cost import memory
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.errors import SaidElsewhereError, UserError
from dino_x.machine.device import GIB, limited_memory
from dino_x.machine.host import free_bytes
from dino_x.machine.out_of_memory import OutOfMemory, caught, let_go
from dino_x.training.micro_batch import (
    CPU_SHARE,
    helps,
    largest_by_calculation,
    runs,
    sizes_of,
)
from dino_x.training.trainer import Trainer


@contextmanager
def out_of_memory_named(trainer: Trainer, step: Step) -> Iterator[None]:
    """A context for training, in which running out of memory names the micro-batch that fits.

    Args:
        trainer: about to train.
        step: of this process as numbers, at the micro-batch it trains with.

    Raises: UserError
    """
    device = trainer.cutter.device
    room = free_bytes(device)
    if trainer.state.optimizer.state:  # resumed: that much of what is needed is there
        numerics = Numerics.on(trainer.options.train.precision, device)
        room += sum(memory.optimizer(step, numerics).values())
    found = None
    try:
        with caught():
            yield
    except OutOfMemory as error:
        let_go(error)
        found = OutOfMemory(str(error), error.told)
    if found is not None:
        raise line_of(trainer, step, room, found)


def line_of(trainer: Trainer, step: Step, room: float, found: OutOfMemory) -> UserError:
    """The error to raise: what was tried, what fits, from where the run resumes."""
    tried, where = step.micro_batch, f"step {trainer.done + 1}"
    if trainer.ranks.rank > 0 and found.told:
        return SaidElsewhereError(str(found))
    numerics = Numerics.on(trainer.options.train.precision, trainer.cutter.device)
    message = f"out of memory in {where} with a micro-batch of {tried} ({found}); "
    if trainer.ranks.rank > 0:  # the others do not know, and end because this one does
        message = f"process {trainer.ranks.rank}: {message}"
    last_good = trainer.saver.last_good()
    fits, how = smaller_that_fits(trainer, step, numerics, room)
    if fits is None:
        need = memory.still_taken(step.at(1), numerics) / GIB
        return UserError(
            f"{message}not even 1 fits: it takes about {need:.2f} GiB beside the weights and"
            f" {room / GIB:.2f} were free; {helps(step.at(1), numerics)}; {last_good}"
        )
    return UserError(
        f"{message}{fits} fits {how}; {last_good}; continue with"
        f" --resume --micro-batch {fits}, which changes nothing about the result"
    )


def smaller_that_fits(
    trainer: Trainer, step: Step, numerics: Numerics, room: float
) -> tuple[int | None, str]:
    """The largest smaller micro-batch that fits, and how that is known; None if none does."""
    smaller = [size for size in sizes_of(step) if size < step.micro_batch]
    device = trainer.cutter.device
    trainer.state.optimizer.zero_grad(set_to_none=True)
    gc.collect()

    def needed(size: int) -> float:
        return memory.still_taken(step.at(size), numerics)

    if device.type != "cuda" or trainer.ranks.world_size > 1:
        usable = room
        if device.type != "cuda":
            usable = CPU_SHARE * room / step.processes
        return largest_by_calculation(smaller, needed, usable), "by calculation"
    torch.cuda.empty_cache()
    likely = [size for size in smaller if needed(size) <= room] or smaller[-1:]
    later = sum(memory.kept(step, numerics).values())
    if not trainer.state.optimizer.state:
        later += sum(memory.optimizer(step, numerics).values())
    with limited_memory(device, later + memory.KEPT_FREE * room):
        for size in likely:
            if runs(trainer.steps.try_micro_batch, size):
                return size, "as was just tried"
    return None, ""
