"""The plan of a run: the memory, time and cost of what the user would train."""

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
from dino_x.cost import flops
from dino_x.cost.gpus import Gpu
from dino_x.cost.shapes import Step
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index
from dino_x.data.loading.loader import Loader
from dino_x.distributed.shares import check_enough, usable
from dino_x.errors import UserError
from dino_x.files import write_json
from dino_x.losses.ranks import ALONE
from dino_x.machine.device import choose_device, describe_device
from dino_x.model.backbone import build_backbone
from dino_x.model.teacher import build_student
from dino_x.planning import measure
from dino_x.planning.measure import Trial
from dino_x.planning.need import for_gpu, for_machine, notes_on_memory
from dino_x.planning.outlook import Outlook, outlook
from dino_x.planning.speed import Speed, speed
from dino_x.runs.start import inherited
from dino_x.training.images import Early, early_checks, images_of
from dino_x.training.micro_batch import CPU_MICRO_BATCH
from dino_x.training.prepare import canvas_form, check_koleo_group, check_patches
from dino_x.version import __version__

UNKNOWN_SIDE = 2**20  # pixels of an image that is not known: crops decide how large canvases are


@dataclass(frozen=True)
class Request:
    """The questions that a plan answers, beside the run's own options.

    Attributes:
        gpu: plan for it by calculation, not for this machine.
        gpus: the number of processes that share a step.
        mfu: share of a GPU's peak that is reached; None for the share in ``gpus.ASSUMED``.
        price: price of a GPU (or machine) an hour, in any currency.
        measure: whether to run a trial on this machine.
        images: the number of images in the data set, where there is no data to look at.
    """

    gpu: Gpu | None = None
    gpus: int = 1
    mfu: float | None = None
    price: float | None = None
    measure: bool = True
    images: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, with a UserError."""
        for name, value in (("--gpus", self.gpus), ("--images", self.images)):
            if value is not None and value < 1:
                raise UserError(f"{name} is a whole number from 1; got {value}")
        if self.mfu is not None:
            check_mfu(self.mfu, self.gpu)
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise UserError(f"--price is an amount an hour, from 0; got {self.price:g}")


def check_mfu(mfu: float, gpu: Gpu | None) -> None:
    """Refuse a share of the peak that is out of range, or of no GPU, with a UserError."""
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu is a share of the peak, above 0 and up to 1; got {mfu:g}")
    if gpu is None:
        raise UserError("--mfu is for a calculation: name a card with --card")


@dataclass(frozen=True)
class Plan:
    """The memory, time and cost that a run will take.

    Attributes:
        options: the options as a run would resolve them.
        step: a step of one process as numbers.
        preset, policy: the preset and the centering that are chosen, in words.
        device: the GPU, or this machine.
        memory: bytes by part, of one process on its device.
        room: bytes that the process may take there.
        fits: the largest micro-batch that fits by calculation; None if none does.
        flops: FLOP an image, by part.
        speed: images a second; None where it is neither measured nor calculated.
        trial: the measurements on this machine, if there are any.
        price: price of a GPU an hour.
        steps: the number of steps; None where neither data nor the user say it.
        outlook: what else one could do than wait for it on this CPU; None where nothing is measured
            on one.
        notes: sentences on what could not be computed, or may go wrong.
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
    outlook: Outlook | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def accumulation(self) -> int:
        """The number of micro-batches of a process in a step."""
        return self.step.accumulation

    @property
    def needed(self) -> float:
        """The bytes that one process needs."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float | None:
        """The seconds of the whole run; None where speed or steps are not known."""
        if self.speed is None or self.steps is None:
            return None
        return self.steps * self.step.effective_batch / self.speed.images_per_second

    @property
    def cost(self) -> float | None:
        """The cost of the whole run on all GPUs; None where time or price are not known."""
        if self.seconds is None or self.price is None:
            return None
        return self.seconds / 3600 * self.price * self.step.processes

    @property
    def images_seen(self) -> int | None:
        """The number of images that the run trains on, repetitions included."""
        if self.steps is None:
            return None
        return self.steps * self.step.effective_batch

    @property
    def passes(self) -> float | None:
        """How often the run sees each image."""
        if self.images_seen is None or self.step.images is None:
            return None
        return self.images_seen / self.step.images

    def as_json(self) -> dict[str, Any]:
        """The plan for other programs, in bytes, seconds and FLOP."""
        speed, trial, look = self.speed, self.trial, self.outlook
        return {
            "dino_x": __version__,
            "device": self.device,
            "images": self.step.images,
            "preset": self.preset,
            "effective_batch": self.step.effective_batch,
            "micro_batch": self.step.micro_batch,
            "accumulation": self.accumulation,
            "processes": self.step.processes,
            "centering": self.policy.centering,
            "centering_message": self.policy.message,
            "steps": self.steps,
            "images_seen": self.images_seen,
            "passes": self.passes,
            "memory_bytes": self.memory,
            "memory_needed_bytes": self.needed,
            "memory_room_bytes": self.room,
            "largest_micro_batch": self.fits,
            "flop_per_image": self.flops,
            "images_per_second": None if speed is None else speed.images_per_second,
            "speed": None if speed is None else speed.how,
            "measured": None if trial is None else asdict(trial),
            "seconds": self.seconds,
            "outlook": None if look is None else look.as_json(),
            "price_per_hour": self.price,
            "cost": self.cost,
            "notes": self.notes,
        }


def plan(overrides: Mapping[str, Any], request: Request, console: Console) -> Plan:
    """The plan of a run.

    Args:
        overrides: the options that the user set, as for ``pretrain``; without ``data.paths`` the
            plan holds less.
        request: the other questions of the user.
        console: where progress is shown.

    Raises: UserError for everything that would be wrong in ``pretrain``, and for a GPU that cannot
        do what is asked.
    """
    early = early_checks({"data.verify": "headers", **overrides}, ALONE)
    index, images = look_at(early, request, console)
    facts = Facts(images or 1, inherited(overrides), early.patch_size)
    resolved = resolve(overrides, facts)
    steps = None
    if images or overrides.get("train.steps"):
        steps = resolved.options.train.steps
    preset = resolved.preset
    notes: list[str] = []
    if images is None:
        preset = preset_in_words(overrides, preset)
        notes.append(unknown_in_words(steps))
    options = checked(resolved.options, request)
    device = choose_device("cpu")
    if request.gpu is None:
        device = choose_device(options.train.device)
    run_steps, step, reading = networks(options, request, index, images, device)
    if request.gpu is not None:
        step, need = for_gpu(step, request.gpu)
    else:
        step, need = for_machine(step, device, run_steps)
    trial = None
    if run_steps is not None:
        run_steps.use_micro_batch(step.micro_batch)
        trial = measure.trial(run_steps, step.micro_batch, describe_device(device), reading)
    work = flops.by_part(step, need.numerics.working)
    notes += notes_on_memory(step, need)
    rate = speed(step, request.gpu, request.mfu, trial, sum(work.values()))
    look = None
    if trial is not None and rate is not None and steps and device.type == "cpu":
        look = outlook(step, rate.images_per_second, steps)
    return Plan(
        options=options,
        step=step,
        preset=preset,
        policy=resolved.policy,
        device=request.gpu.name if request.gpu else describe_device(device),
        memory=need.parts,
        room=need.room,
        fits=need.fits,
        flops=work,
        speed=rate,
        trial=trial,
        price=request.price,
        steps=steps,
        outlook=look,
        notes=notes,
    )


def preset_in_words(overrides: Mapping[str, Any], preset: str) -> str:
    """The preset of a run for which the number of images is not known."""
    automatic = str(overrides.get("preset", "auto")) == "auto"
    if automatic and "small" in preset:
        return "preset small, as for fewer than 100,000 images; how many is not known"
    return preset


def unknown_in_words(steps: int | None) -> str:
    """A note that names what cannot be computed while the number of images is not known."""
    missing = "passes over the images"
    if not steps:
        missing = f"steps, time, cost, {missing}"
    return f"not known without --data or --images: {missing}"


def checked(options: Options, request: Request) -> Options:
    """The options with a micro-batch that divides the batch.

    Raises: UserError for options that cannot be trained with.
    """
    check_koleo_group(options)
    check_gpu(request.gpu, options)
    asked, batch = options.train.micro_batch, options.train.effective_batch
    check_enough(batch, request.gpus)
    if not isinstance(asked, int):
        return options
    size = usable(batch, asked, request.gpus, named=True)
    return with_values(options, {"train.micro_batch": size})


def look_at(early: Early, request: Request, console: Console) -> tuple[Index, int | None]:
    """The images, or one that stands for them; and their number, or None if it is not known."""
    options = early.options
    if options.data.paths:
        index, _, _ = images_of(early, console)
        return index, len(index)
    unknown = ImageRef(path=Path("unknown"), height=UNKNOWN_SIDE, width=UNKNOWN_SIDE)
    return Index([unknown]), request.images


def check_gpu(gpu: Gpu | None, options: Options) -> None:
    """Refuse a precision that a GPU cannot compute in, with a UserError."""
    precision = options.train.precision
    if gpu is None or gpu.peak(precision) is not None:
        return
    reason = ""
    if precision == "bf16":
        reason = ", which it cannot do in hardware"
    others = "fp32" if gpu.bf16 is None else "bf16 or fp32"
    raise UserError(f"{gpu.name}: no figures for --precision {precision}{reason}; choose {others}")


def networks(
    options: Options,
    request: Request,
    index: Index,
    images: int | None,
    device: torch.device,
) -> tuple[Any, Step, float | None]:
    """Make the networks of a run.

    Without a trial, a network of a built-in size is made without its weights.

    Returns: steps to measure with, or None without a trial; a step as numbers; and how many images
        are read a second, or None if none are read.
    """
    measured = request.measure and request.gpu is None
    loads_weights = options.teacher.model or options.gram.teacher or not is_size(options.model.name)
    light = not measured and not loads_weights
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
    canvases = measure.made_up(count, form.channels, form.side)
    if options.data.paths and measured:
        with Loader(index, form, cache_bytes=0, workers=options.data.workers) as loader:
            canvases, reading = measure.read_some(loader, count, len(index))
    steps = measure.trial_steps(options, backbone, canvases, images or count, device)
    gram = steps.gram.backbone if steps.gram else None
    gram_patch = gram.patch_size if gram else backbone.patch_size
    check_patches(options, backbone.patch_size, gram_patch)
    targets = steps.targets_of if steps.state.distilled is not None else None
    step = Step.of(options, steps.student, targets=targets, gram=gram, **known)
    if not measured:
        return None, step, reading
    return steps, step, reading


def check_place(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything is measured, with a UserError."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"--json takes a file in a folder that is there; got {path}")


def save(plan: Plan, path: Path | None) -> None:
    """Write the plan to a JSON file, if one is named.

    Raises: UserError if it cannot be written.
    """
    if path is None:
        return
    try:
        write_json(path, plan.as_json())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
