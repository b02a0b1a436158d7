"""The micro-batch: the largest that fits, and its file in the folder of a run."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from dino_x.cost import memory
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.distributed.shares import choices
from dino_x.errors import UserError
from dino_x.files import parse_json, read_text, write_json
from dino_x.machine.device import GIB, limited_memory
from dino_x.machine.host import free_bytes, limit_bytes
from dino_x.machine.out_of_memory import OutOfMemory, caught
from dino_x.runs.folder import RunFolder
from dino_x.views.sizes import GLOBAL_VIEWS

# On a CPU a larger micro-batch gains no speed and costs memory, but for small crops: of those
# more are needed until matrix products have rows enough, and memory then is no more.
CPU_MICRO_BATCH = 16
CPU_ROWS = 4096  # tokens of all crops; 16 images of two crops of 224 px have 6,304
CPU_SHARE = 0.9  # of what is free


@dataclass(frozen=True)
class Chosen:
    """A micro-batch, and a clause that says where it comes from, if not from the user.

    ``warning`` is for a size that may not fit.
    """

    size: int
    why: str = ""
    warning: bool = False

    @property
    def auto(self) -> bool:
        """Whether the size was found by the program, now or before."""
        return bool(self.why)


def largest_by_calculation(
    sizes: Sequence[int], needed: Callable[[int], float], room: float
) -> int | None:
    """The largest of some sizes that needs no more than ``room`` bytes; None if none does."""
    fitting = [size for size in sizes if needed(size) <= room]
    return max(fitting, default=None)


def largest_that_runs(
    sizes: Sequence[int], guess: int, attempt: Callable[[int], None]
) -> tuple[int | None, int]:
    """The largest of some sizes that runs, in few tries: next to a guess, then by halves.

    Args:
        sizes: that there are.
        guess: where to begin; a good one costs two tries.
        attempt: runs one; raises torch.OutOfMemoryError if it does not fit.

    Returns: the size, None if not even the smallest runs, and the number of tries.
    """
    rising = sorted(sizes)
    fits, fails = -1, len(rising)  # places of the largest known to run, the smallest known not to
    place, tries = max(0, bisect_right(rising, guess) - 1), 0
    while fails - fits > 1:
        tries += 1
        if runs(attempt, rising[place]):
            fits = place
            place = fits + 1 if tries == 1 else (fits + fails) // 2
        else:
            fails = place
            place = fails - 1 if tries == 1 else (fits + fails) // 2
    if fits < 0:
        return None, tries
    return rising[fits], tries


def runs(attempt: Callable[[int], None], size: int) -> bool:
    """Whether a size runs; what it left in the allocator is given back."""
    try:
        with caught():
            attempt(size)
    except OutOfMemory:
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def sizes_of(step: Step) -> list[int]:
    """Micro-batches that a step can have, largest first."""
    return choices(step.effective_batch, step.processes, equally_many=step.parts > 1)


def most_on_cpu(step: Step) -> int:
    """The largest micro-batch that is worth its memory on a CPU."""
    student, sizes = step.student, step.largest
    rows = GLOBAL_VIEWS * student.tokens(sizes.global_size)
    rows += step.locals * student.tokens(sizes.local_size)
    return max(CPU_MICRO_BATCH, CPU_ROWS // rows)


def find(step: Step, device: torch.device, attempt: Callable[[int], None]) -> Chosen:
    """The micro-batch for ``auto``: by calculation on a CPU, by trying on a GPU.

    Args:
        step: as it is; any micro-batch. The networks are made, the optimizer has no state yet.
        device: where.
        attempt: see ``largest_that_runs``.

    Raises: UserError if not even one image fits on a GPU.
    """
    numerics = Numerics.on(step.options.train.precision, device)
    sizes, room = sizes_of(step), free_bytes(device)
    if device.type != "cuda":
        return _calculated(step, numerics, sizes, room / step.processes)

    def needed(size: int) -> float:
        return memory.still_taken(step.at(size), numerics)

    # What an attempt has not: the optimizer's state, what is kept of the whole effective batch.
    later = sum(memory.optimizer(step, numerics).values())
    later += sum(memory.kept(step, numerics).values())
    spare = memory.KEPT_FREE * limit_bytes(device)
    guess = largest_by_calculation(sizes, needed, room - spare) or 1
    with limited_memory(device, later + spare):
        found, tries = largest_that_runs(sizes, guess, attempt)
    if found is None:
        raise UserError(
            f"not even a micro-batch of 1 fits in the GPU's memory; {helps(step.at(1), numerics)}"
        )
    return Chosen(found, f"found in {tries} tr{'y' if tries == 1 else 'ies'}")


def _calculated(step: Step, numerics: Numerics, sizes: Sequence[int], room: float) -> Chosen:
    """The micro-batch on a CPU, where running out of memory may end the process.

    Args:
        step, numerics: see ``find``.
        sizes: the micro-batches there are, largest first.
        room: free bytes of one process.
    """
    images = memory.decoded_images(step)

    def needed(size: int) -> float:
        return memory.still_taken(step.at(size), numerics) + images

    usual = [size for size in sizes if size <= most_on_cpu(step)]
    size = largest_by_calculation(usual, needed, CPU_SHARE * room)
    if size is None:
        short = (
            f"by calculation even 1 takes {needed(1) / GIB:.1f} GiB more and"
            f" {room / GIB:.1f} are free: the system may end the run"
        )
        return Chosen(1, short, warning=True)
    if size == usual[0]:
        return Chosen(size, "auto")
    return Chosen(size, f"auto, more would not fit in {room / GIB:.1f} GiB")


def helps(step: Step, numerics: Numerics) -> str:
    """What makes a step smaller that does not fit with one image: by what takes most of it.

    First what changes nothing about the result, and can be said when a run is resumed.
    """
    parts = memory.by_part(step, numerics)
    backbone = sum(v for name, v in parts.items() if "backbone" in name)
    heads = sum(v for name, v in parts.items() if "heads" in name or "prototypes" in name)
    both = sum(v for name, v in parts.items() if name in ("gradients", "optimizer (AdamW)"))
    ratio = step.student.weights / (step.student.weights + 2 * step.head.weights)
    asked = {
        f"fewer prototypes (head.prototypes={step.head.prototypes // 4})": heads
        + (1 - ratio) * both,
        "a smaller --model": backbone + ratio * both,
        "smaller crops (views.global_size, views.local_crops)": sum(
            value for name, value in parts.items() if name.startswith("activations, ")
        ),
        "a smaller --effective-batch": parts.get("effective batch, bottlenecks", 0.0)
        + parts.get("targets of the effective batch", 0.0),
        f"a shorter --queue than {step.options.loss.queue}": parts.get("queue", 0.0),
    }
    most = sorted(asked, key=lambda name: -asked[name])[:2]
    if numerics.device == "cuda" and numerics.precision != "bf16":
        most.append("--precision bf16")
    new_run = f"in a new run, try {', '.join(most[:-1])} or {most[-1]}"
    free = [name for name, other in lighter(step).items() if saves(other, step, numerics)]
    if not free:
        return new_run
    changes = "changes" if len(free) == 1 else "change"
    return f"set {' or '.join(free)}, which {changes} nothing about the result; or, {new_run}"


def lighter(step: Step) -> dict[str, Step]:
    """The same step with settings that save memory and change nothing else."""
    train = step.options.train
    found: dict[str, dict[str, object]] = {}
    if not train.activation_checkpointing:
        found["train.activation_checkpointing=true"] = {"activation_checkpointing": True}
    if step.processes > 1 and step.parts == 1:
        found["train.shard=full"] = {"shard": "full"}
    steps = {}
    for name, values in found.items():
        lighter_train = train.model_copy(update=values)
        options = step.options.model_copy(update={"train": lighter_train})
        steps[name] = replace(step, options=options)
    return steps


def saves(lighter_step: Step, step: Step, numerics: Numerics) -> bool:
    """Whether the one takes clearly less memory than the other."""
    return memory.needed(lighter_step, numerics) < 0.95 * memory.needed(step, numerics)


def device_key(device: torch.device) -> str:
    """The GPU or CPU and its memory: where they are the same, a remembered micro-batch holds."""
    limit = limit_bytes(device)
    size = f"{limit / GIB:.0f} GiB" if limit < float("inf") else "unknown memory"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, {size}"


def remember(run: RunFolder, chosen: Chosen, devices: list[str]) -> None:
    """Write a run's micro-batch to its folder, for when it is resumed.

    Raises: UserError if that cannot be written.
    """
    values = {"micro_batch": chosen.size, "auto": chosen.auto, "devices": devices}
    try:
        write_json(run.micro_batch, values)
    except OSError as error:
        raise UserError(f"cannot write to {run.path}: {error.strerror}") from error


def remembered(run: RunFolder) -> tuple[int, bool, list[str]] | None:
    """A run's micro-batch, whether it was found, and where; None if nothing useful is kept."""
    try:
        values = parse_json(read_text(run.micro_batch))
        size, devices = int(values["micro_batch"]), [str(name) for name in values["devices"]]
        auto = bool(values["auto"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if size <= 0:
        return None
    return size, auto, devices
