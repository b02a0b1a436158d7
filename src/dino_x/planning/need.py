"""The memory that a step needs, on a GPU by calculation or on this machine, and what fits."""

from dataclasses import dataclass
from typing import Any

import torch

from dino_x.cost import memory
from dino_x.cost.gpus import Gpu
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.machine.host import free_bytes, resident_bytes
from dino_x.planning import measure
from dino_x.training.micro_batch import (
    CPU_SHARE,
    helps,
    largest_by_calculation,
    most_on_cpu,
    sizes_of,
)


@dataclass(frozen=True)
class Need:
    """The memory of one process, and the room for it.

    Attributes:
        numerics: the width of numbers and the size of workspaces.
        parts: bytes by part at the peak of a step.
        room: bytes that the process may take.
        fits: the largest micro-batch that fits by calculation; None if none does.
    """

    numerics: Numerics
    parts: dict[str, float]
    room: float
    fits: int | None


def for_gpu(step: Step, gpu: Gpu) -> tuple[Step, Need]:
    """The step with the micro-batch for a GPU, and the memory that it needs there."""
    numerics = Numerics.of_gpu(step.options.train.precision, int(gpu.memory * memory.GIB))
    fits = largest_by_calculation(
        sizes_of(step), lambda n: memory.needed(step.at(n), numerics), gpu.usable
    )
    size = step.options.train.micro_batch
    if not isinstance(size, int):
        size = fits or 1
    step = step.at(size)
    return step, Need(numerics, memory.by_part(step, numerics), gpu.usable, fits)


def parts_on_cpu(step: Step, numerics: Numerics) -> dict[str, float]:
    """Bytes by part of one process on a CPU, with decoded images and the allocator's gaps."""
    parts = memory.by_part(step, numerics)
    parts["decoded images"] = memory.decoded_images(step)
    parts["gaps of the allocator"] = (memory.CPU_GAPS - 1) * memory.still_needed(step, numerics)
    return parts


def for_machine(step: Step, device: torch.device, steps: Any) -> tuple[Step, Need]:
    """The step with the micro-batch for this machine, and the memory that it needs here."""
    numerics = Numerics.on(step.options.train.precision, device)
    held = 0.0  # bytes of weights that this process holds already
    if steps is not None:
        held = sum(memory.weights(step, numerics).values())
    room = free_bytes(device) + held
    if device.type == "cpu":
        return _for_cpu(step, steps, numerics, room, max(resident_bytes() - held, 0.0))

    def needed(size: int) -> float:
        return sum(memory.by_part(step.at(size), numerics).values())

    fits = largest_by_calculation(sizes_of(step), needed, (1 - memory.KEPT_FREE) * room)
    step = step.at(_size_on_machine(step, steps, fits))
    return step, Need(numerics, memory.by_part(step, numerics), room, fits)


def _for_cpu(
    step: Step, steps: Any, numerics: Numerics, room: float, program: float
) -> tuple[Step, Need]:
    """The same as ``for_machine``, on a CPU, whose memory all processes share.

    Args:
        step, steps, numerics, room: as there.
        program: bytes of Python and its libraries.
    """

    def needed(size: int) -> float:
        return sum(parts_on_cpu(step.at(size), numerics).values()) * step.processes

    sizes = sizes_of(step)
    fits = largest_by_calculation(sizes, needed, CPU_SHARE * room)
    usual = [size for size in sizes if size <= most_on_cpu(step)]
    usual_fits = largest_by_calculation(usual, needed, CPU_SHARE * room)
    step = step.at(_size_on_machine(step, steps, usual_fits))
    parts = parts_on_cpu(step, numerics)
    parts["Python and its libraries"] = program
    return step, Need(numerics, parts, room + program, fits)


def _size_on_machine(step: Step, steps: Any, fits: int | None) -> int:
    """The micro-batch: as the user set it, else as measured, else by calculation."""
    asked = step.options.train.micro_batch
    if isinstance(asked, int):
        return asked
    if steps is not None:
        return measure.choose(step, steps)
    return fits or 1


def notes_on_memory(step: Step, need: Need) -> list[str]:
    """A note if the micro-batch does not fit into memory."""
    if need.fits is None:
        return [f"it does not fit; {helps(step.at(1), need.numerics)}"]
    if step.micro_batch <= need.fits:
        return []
    return [
        f"a micro-batch of {step.micro_batch} will hardly fit: take --micro-batch"
        f" {need.fits}, which changes nothing about the result"
    ]
