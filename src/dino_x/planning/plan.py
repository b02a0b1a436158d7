"""From what the user would train to what it will take: the plan of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dino_x.config.model_sizes import is_size
from dino_x.config.options import Options
from dino_x.config.policy import Policy
from dino_x.config.resolve import Facts, resolve, with_values
from dino_x.cost import flops, memory
from dino_x.cost.gpus import ASSUMED, Gpu
from dino_x.cost.memory import Numerics
from dino_x.cost.shapes import Step
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index
from dino_x.data.loading.loader import Loader
from dino_x.distributed.shares import check_enough, usable
from dino_x.errors import UserError
from dino_x.files import write_json
from dino_x.losses.ranks import ALONE
from dino_x.machine.device import choose_device, describe_device
from dino_x.machine.host import free_bytes, resident_bytes
from dino_x.model.backbone import build_backbone
from dino_x.model.teacher import build_student
from dino_x.planning import measure
from dino_x.planning.measure import Trial
from dino_x.runs.start import inherited
from dino_x.training.images import early_checks, images_of
from dino_x.training.micro_batch import (
    CPU_MICRO_BATCH,
    CPU_SHARE,
    helps,
    largest_by_calculation,
    sizes_of,
)
from dino_x.training.prepare import canvas_form, check_koleo_group, check_patches
from dino_x.version import __version__

UNKNOWN_SIDE = 2**20  # pixels of an image that is not known: crops decide how large canvases are


@dataclass(frozen=True)
class Request:
    """What is asked beside the run's own options.

    Attributes:
        gpu: plan for it by calculation, not for this machine.
        gpus: processes that share a step.
        mfu: share of a GPU's peak that is reached; None is what is assumed.
        price: of a GPU (or machine) an hour, in any currency.
        measure: whether to run a trial on this machine.
        images: in the data set, where there is no data to look at.
    """

    gpu: Gpu | None = None
    gpus: int = 1
    mfu: float | None = None
    price: float | None = None
    measure: bool = True
    images: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--gpus", self.gpus), ("--images", self.images)):
            if value is not None and value < 1:
                raise UserError(f"{name} is a whole number from 1; got {value}")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise UserError(f"--mfu is a share of the peak, above 0 and up to 1; got {self.mfu:g}")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UserError(f"--price is an amount an hour, from 0; got {self.price:g}")
        if self.mfu is not None and self.gpu is None:
            raise UserError("--mfu is for a calculation: name a card with --card")


@dataclass(frozen=True)
class Speed:
    """Images a second, and how they are known."""

    images_per_second: float
    how: str
    measured: bool


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Attributes:
        options: as they would be resolved.
        step: a step of one process as numbers.
        preset, policy: what is decided, in words.
        device: the GPU, or this machine.
        memory: bytes by part, of one process on its device.
        room: bytes that it may take there.
        fits: the largest micro-batch that fits by calculation; None if none does.
        flops: FLOP an image, by part.
        speed: None where nothing says it.
        trial: what was measured.
        price: of a GPU an hour.
        steps: None where neither data nor the user say it.
        notes: what could not be computed, or may go wrong.
    """

    options: Options
    step: Step
    preset: str
    policy: Policy
    device: str
    memory: dict[str, float]
    room: float
    fits: int | None
    flops: dict[str, float]
    speed: Speed | None
    trial: Trial | None
    price: float | None
    steps: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a process in a step."""
        return self.step.accumulation

    @property
    def needed(self) -> float:
        """Bytes of one process."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float | None:
        """Of the whole run."""
        if self.speed is None or self.steps is None:
            return None
        return self.steps * self.step.effective_batch / self.speed.images_per_second

    @property
    def cost(self) -> float | None:
        """Of the whole run, on all GPUs."""
        if self.seconds is None or self.price is None:
            return None
        return self.seconds / 3600 * self.price * self.step.processes

    def as_json(self) -> dict[str, Any]:
        """All of it, for other programs. Bytes, seconds, FLOP."""
        images, batch = self.step.images, self.step.effective_batch
        return {
            "dino_x": __version__,
            "device": self.device,
            "images": images,
            "preset": self.preset,
            "effective_batch": batch,
            "micro_batch": self.step.micro_batch,
            "accumulation": self.accumulation,
            "processes": self.step.processes,
            "centering": self.policy.centering,
            "centering_message": self.policy.message,
            "steps": self.steps,
            "images_seen": None if self.steps is None else self.steps * batch,
            "passes": None if None in (self.steps, images) else self.steps * batch / images,  # type: ignore[operator]
            "memory_bytes": self.memory,
            "memory_needed_bytes": self.needed,
            "memory_room_bytes": self.room,
            "largest_micro_batch": self.fits,
            "flop_per_image": self.flops,
            "images_per_second": None if self.speed is None else self.speed.images_per_second,
            "speed": None if self.speed is None else self.speed.how,
            "measured": None if self.trial is None else asdict(self.trial),
            "seconds": self.seconds,
            "price_per_hour": self.price,
            "cost": self.cost,
            "notes": self.notes,
        }


def plan(overrides: Mapping[str, Any], request: Request, console: Console) -> Plan:
    """The plan of a run.

    Args:
        overrides: what the user set, as for ``pretrain``; without ``data.paths`` less can be said.
        request: what else is asked.
        console: for progress.

    Raises: UserError for everything that would be wrong in ``pretrain``, and for a GPU that cannot
        do what is asked.
    """
    notes: list[str] = []
    index, images = look_at(overrides, request, console)
    resolved = resolve(overrides, Facts(images or 1, inherited(overrides)))
    options, preset, policy = resolved.options, resolved.preset, resolved.policy
    steps = options.train.steps if images or overrides.get("train.steps") else None
    if images is None:
        if str(overrides.get("preset", "auto")) == "auto" and "small" in preset:
            preset = "preset small, as for fewer than 100,000 images; how many is not known"
        missing = "passes over the images" if steps else "steps, time, cost, passes over the images"
        notes.append(f"not known without --data or --images: {missing}")
    check_koleo_group(options)
    check_gpu(request.gpu, options)
    asked, batch = options.train.micro_batch, options.train.effective_batch
    check_enough(batch, request.gpus)
    if isinstance(asked, int):
        size = usable(batch, asked, request.gpus, named=True)
        options = with_values(options, {"train.micro_batch": size})
    measured = request.measure and request.gpu is None
    device = choose_device(options.train.device if request.gpu is None else "cpu")
    run_steps, step, held = networks(options, request, index, images, measured, device)
    if request.gpu is not None:
        step, numbers = for_gpu(step, request.gpu)
    else:
        step, numbers = for_machine(step, device, run_steps)
    trial = None
    if run_steps is not None:
        run_steps.use_micro_batch(step.micro_batch)
        trial = measure.trial(run_steps, step.micro_batch, describe_device(device), held)
    work = flops.by_part(step, numbers["numerics"].working)
    if numbers["fits"] is None:
        notes.append(f"it does not fit; {helps(step.at(1), numbers['numerics'])}")
    elif step.micro_batch > numbers["fits"]:
        notes.append(
            f"a micro-batch of {step.micro_batch} will hardly fit: take --micro-batch"
            f" {numbers['fits']}, which changes nothing about the result"
        )
    return Plan(
        options=options,
        step=step,
        preset=preset,
        policy=policy,
        device=request.gpu.name if request.gpu else describe_device(device),
        memory=numbers["parts"],
        room=numbers["room"],
        fits=numbers["fits"],
        flops=work,
        speed=speed(step, request, trial, sum(work.values())),
        trial=trial,
        price=request.price,
        steps=steps,
        notes=notes,
    )


def look_at(
    overrides: Mapping[str, Any], request: Request, console: Console
) -> tuple[Index, int | None]:
    """The images, or one that stands for them; and how many there are, if that is known."""
    early = early_checks({"data.verify": "headers", **overrides}, ALONE).options
    if early.data.paths:
        index, _, _ = images_of(early, console)
        return index, len(index)
    unknown = ImageRef(path=Path("unknown"), height=UNKNOWN_SIDE, width=UNKNOWN_SIDE)
    return Index([unknown]), request.images


def check_gpu(gpu: Gpu | None, options: Options) -> None:
    """Refuse a precision that a GPU has not, with a UserError."""
    precision = options.train.precision
    if gpu is not None and gpu.peak(precision) is None:
        others = "fp32" if gpu.bf16 is None else "bf16 or fp32"
        raise UserError(
            f"{gpu.name}: no figures for --precision {precision}"
            f"{', which it cannot do in hardware' if precision == 'bf16' else ''}; choose {others}"
        )


def networks(
    options: Options,
    request: Request,
    index: Index,
    images: int | None,
    measured: bool,
    device: torch.device,
) -> tuple[Any, Step, float | None]:
    """Steps to measure with, if there are to be any; a step as numbers; and how fast images are
    read, if there are any.

    Without a trial, a network of a built-in size is made without its weights.
    """
    light = not measured and is_size(options.model.name)
    light = light and not options.teacher.model and not options.gram.teacher
    with torch.device("meta" if light else "cpu"):
        backbone = build_backbone(options.model, options.views.global_size, options.train.seed)
        student = build_student(options, backbone) if light else None
    form = canvas_form(options, index, backbone.channels)
    known: dict[str, Any] = {
        "processes": request.gpus, "canvas": form.side, "channels": form.channels, "images": images,
    }  # fmt: skip
    if student is not None:
        check_patches(options, backbone.patch_size, backbone.patch_size)
        return None, Step.of(options, student, **known), None
    reading = None
    count = min(CPU_MICRO_BATCH, options.train.effective_batch)
    if options.data.paths and measured:
        with Loader(index, form, cache_bytes=0, workers=options.data.workers) as loader:
            canvases, reading = measure.read_some(loader, count, len(index))
    else:
        canvases = measure.made_up(count, form.channels, form.side)
    steps = measure.trial_steps(options, backbone, canvases, images or count, device)
    gram = steps.gram.backbone if steps.gram else None
    check_patches(options, backbone.patch_size, gram.patch_size if gram else backbone.patch_size)
    targets = steps.targets_of if steps.state.distilled is not None else None
    step = Step.of(options, steps.student, targets=targets, gram=gram, **known)
    return (steps if measured else None), step, reading


def for_gpu(step: Step, gpu: Gpu) -> tuple[Step, dict[str, Any]]:
    """With the micro-batch for a GPU; and its memory: parts, room, the largest that fits."""
    numerics = Numerics.of_gpu(step.options.train.precision, int(gpu.memory * memory.GIB))
    fits = largest_by_calculation(
        sizes_of(step), lambda n: memory.needed(step.at(n), numerics), gpu.usable
    )
    overrides = step.options.train.micro_batch
    step = step.at(overrides if isinstance(overrides, int) else fits or 1)
    parts = memory.by_part(step, numerics)
    return step, {"numerics": numerics, "parts": parts, "room": gpu.usable, "fits": fits}


def for_machine(step: Step, device: torch.device, steps: Any) -> tuple[Step, dict[str, Any]]:
    """Likewise for this machine."""
    numerics = Numerics.on(step.options.train.precision, device)
    there = sum(memory.weights(step, numerics).values()) if steps is not None else 0.0
    room = free_bytes(device) + there
    cpu = device.type == "cpu"
    program = resident_bytes() - there if cpu else 0.0
    share = CPU_SHARE if cpu else 1 - memory.KEPT_FREE

    def parts_of(size: int) -> dict[str, float]:
        parts = memory.by_part(step.at(size), numerics)
        if cpu:
            gaps = (memory.CPU_GAPS - 1) * memory.still_needed(step.at(size), numerics)
            parts["decoded images"] = memory.decoded_images(step)
            parts["gaps of the allocator"] = gaps
        return parts

    def needed(size: int) -> float:
        return sum(parts_of(size).values()) * (step.processes if cpu else 1)

    fits = largest_by_calculation(sizes_of(step), needed, share * room)
    overrides = step.options.train.micro_batch
    if isinstance(overrides, int):
        step = step.at(overrides)
    elif steps is not None:
        step = step.at(measure.choose(step, steps))
    else:
        usual = [n for n in sizes_of(step) if not cpu or n <= CPU_MICRO_BATCH]
        step = step.at(largest_by_calculation(usual, needed, share * room) or 1)
    parts = parts_of(step.micro_batch)
    if cpu:
        parts["Python and its libraries"] = max(program, 0.0)
        room += max(program, 0.0)
    return step, {"numerics": numerics, "parts": parts, "room": room, "fits": fits}


def speed(step: Step, request: Request, trial: Trial | None, flop: float) -> Speed | None:
    """Images a second: measured, or estimated for a GPU, or not known."""
    precision = step.options.train.precision
    if request.gpu is not None:
        tf32 = torch.get_float32_matmul_precision() != "highest"
        peak = request.gpu.peak(precision, tf32=tf32)
        assert peak is not None
        mfu = request.mfu or ASSUMED[precision]
        how = (
            f"estimate: {mfu:.0%} of {peak:g} TFLOP/s"
            f" ({'as you say' if request.mfu else 'assumed; --mfu'})"
        )
        return Speed(step.processes * mfu * peak * 1e12 / flop, how, measured=False)
    if trial is None:
        return None
    rate = step.processes / trial.seconds
    how = f"measured here, {trial.images} image{'s' * (trial.images > 1)} at a time"
    if step.processes > 1:
        how += f", times {step.processes}"
    kept = memory.cached_images(step) < step.options.data.cache_mb * 2.0**20
    limited = trial.reading is not None and trial.reading * step.processes < rate
    if limited and trial.reading is not None and not kept and step.options.data.cache is None:
        rate = trial.reading * step.processes
        how = f"as fast as images are read; {1 / trial.seconds:.1f} without (--cache DIR)"
    return Speed(rate, how, measured=True)


def check_place(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is measured, with a UserError."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"--json takes a file in a folder that is there; got {path}")


def save(plan: Plan, path: Path | None) -> None:
    """All figures in a file, if one is named.

    Raises: UserError if it cannot be written.
    """
    if path is None:
        return
    try:
        write_json(path, plan.as_json())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
