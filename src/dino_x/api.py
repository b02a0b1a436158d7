"""DINO-X from Python: what a notebook or a script calls. The command line calls the same.

Nothing is printed unless ``verbose`` is set. What the user can put right is a ``UserError`` with
the words of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_x.errors import UserError
from dino_x.handles import (
    Embeddings,
    Model,
    PathLike,
    Paths,
    Run,
    as_paths,
    as_strings,
    console,
    load,
    text,
)

if TYPE_CHECKING:
    from dino_x.planning.plan import Plan

__all__ = ["Embeddings", "Model", "Run"]
__all__ += ["embed", "evaluate", "export", "index", "load", "plan", "pretrain"]


def pretrain(
    data: Paths,
    out: PathLike,
    *,
    model: PathLike | None = None,
    preset: str | None = None,
    effective_batch: int | None = None,
    micro_batch: int | str | None = None,
    steps: int | None = None,
    prototypes: int | None = None,
    centering: str | None = None,
    queue: int | None = None,
    koleo_group: int | str | None = None,
    seed: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    labels: PathLike | None = None,
    cache: PathLike | None = None,
    index: PathLike | None = None,
    where: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    config: PathLike | None = None,
    resume: bool = False,
    verbose: bool = False,
) -> Run:
    """Train a backbone on unlabelled images; evaluate it if there are labels.

    What is None has its default; ``dino-x options`` lists all options with their meaning.

    Args:
        data: folders, files, archives or indexes.
        out: the folder to make.
        model: a size such as ``vits16``, or weights to start from.
        preset: auto, try, small, dinov3, continue or highres.
        effective_batch: images that an optimizer step looks at.
        micro_batch: images that go through the network together, or ``auto``; it changes nothing
            about the result.
        steps: optimizer steps.
        prototypes: of the heads.
        centering: auto, sinkhorn or softmax.
        queue: past teacher outputs that Sinkhorn-Knopp looks at.
        koleo_group: images among which KoLeo looks for neighbours, or ``effective``.
        seed: of everything random.
        device: auto, cpu, cuda or mps.
        precision: fp32, bf16 or fp64.
        labels: ``folder``, ``column`` or a CSV file, see ``docs/evaluation.md``.
        cache: a folder that keeps decoded images.
        index: an index to keep.
        where: which images of an index are wanted.
        options: any other options by section: ``{"optim": {"lr": 1e-3}, "views": {"flip": 0.5}}``.
        config: a YAML file of options, over which the arguments win.
        resume: continue the run in ``out``, if there is one.
        verbose: print what the command line prints.

    Returns: the run.

    Raises: UserError for everything that the user can put right; what existed is kept.

    >>> import dino_x
    >>> run = dino_x.pretrain("films/", out="runs/a", model="vits16")  # doctest: +SKIP
    >>> run.metrics()[-1]["loss"]  # doctest: +SKIP
    """
    from dino_x.commands.pretrain import pretrain as train

    flags = {
        "data.paths": as_strings(data),
        "model.name": text(model),
        "preset": preset,
        "train.effective_batch": effective_batch,
        "train.micro_batch": micro_batch,
        "train.steps": steps,
        "head.prototypes": prototypes,
        "loss.centering": centering,
        "loss.queue": queue,
        "loss.koleo_group": koleo_group,
        "train.seed": seed,
        "train.device": device,
        "train.precision": precision,
        "data.labels": text(labels),
        "data.cache": text(cache),
        "data.index": text(index),
        "data.where": where,
    }
    overrides = collected(options, config, flags)
    train(overrides, Path(out), resume, console(verbose))
    return Run(out)


def evaluate(
    model: PathLike,
    data: Paths,
    labels: PathLike | None = None,
    *,
    label_column: str = "label",
    masks: PathLike | None = None,
    index: PathLike | None = None,
    where: str | None = None,
    tasks: Sequence[str] | None = None,
    against: Sequence[str] = (),
    features: str = "cls",
    device: str = "auto",
    seed: int = 0,
    verbose: bool = False,
    written_to: PathLike | None = None,
) -> dict[str, Any]:
    """Whether a model is any good: several tasks, beside random weights, raw pixels and others.

    Args:
        model: a run, a folder as transformers saves models, or a name on the hub.
        data: folders, files or indexes.
        labels: ``folder``, ``column`` or a CSV file, see ``docs/evaluation.md``.
        label_column: column of the CSV file that holds the class.
        masks: for segmentation, a table with a column ``mask`` or a folder of masks.
        index: an index of the data.
        where: a condition on the images, such as ``modality == "CT"``.
        tasks: of knn, linear, few-shot and segmentation; by default all that there are data for.
        against: other models.
        features: ``cls``, or ``cls+mean`` for CLS and the mean patch side by side.
        device: auto, cpu, cuda or mps.
        seed: of everything drawn.
        verbose: print the table of the command line.
        written_to: a JSON file for the result, written before anything is printed. If an
            evaluation on other labels is there, that one is given another name.

    Returns: what ``evaluation.json`` holds; see ``docs/evaluation.md``.

    Raises: UserError for a model, data, labels or masks that cannot be used.
    """
    from dino_x.evaluation.suite import evaluate as run_tasks
    from dino_x.evaluation.table import print_table
    from dino_x.files import write_json
    from dino_x.progress import progress_bar
    from dino_x.runs.evaluations import keep_former

    screen = console(verbose)
    with progress_bar(screen, "evaluating") as progress:
        result = run_tasks(
            str(model),
            as_paths(data),
            text(labels),
            label_column=label_column,
            masks=text(masks),
            index=text(index),
            where=where,
            tasks=tasks,
            against=against,
            features=features,
            device=device,
            seed=seed,
            progress=progress,
        )
    former = None
    if written_to is not None:
        former = keep_former(Path(written_to), result)
        write_json(Path(written_to), result)
    print_table(result, screen)
    if former is not None:
        screen.print(
            f"the other evaluation that was there is now {former}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if written_to is not None:
        screen.print(f"written to {written_to}", highlight=False, soft_wrap=True)
    return result


def embed(
    model: PathLike,
    images: Paths,
    *,
    batch_size: int = 64,
    device: str = "auto",
    verbose: bool = False,
) -> Embeddings:
    """Features of all images below some paths; see ``Model.embed``."""
    return load(model, device=device).embed(images, batch_size=batch_size, verbose=verbose)


def export(
    model: PathLike,
    to: PathLike,
    format: str,
    *,
    which: str = "teacher",
    step: int | None = None,
    push: str | None = None,
    public: bool = False,
    verbose: bool = False,
) -> Path:
    """Write a model for other tools, and check what was written.

    Args:
        model: a run, or any model that a run can start from.
        to: the folder to make.
        format: transformers, timm or onnx.
        which: the run's ``teacher``, which is what training is for, or its ``student``.
        step: of a checkpoint of the run; the newest by default.
        push: a name on the hub, ``OWNER/NAME``, to upload the folder to; nothing leaves this
            machine without it.
        public: whether everyone may read it there; by default it is private.
        verbose: print what was compared.

    Returns: the folder.

    Raises: UserError if there is no such model or the folder is taken.
    """
    from dino_x.exporting.run import FORMATS
    from dino_x.exporting.run import export as write
    from dino_x.runs.checkpoint_model import name_at

    if format not in FORMATS:
        raise UserError(f"format '{format}' is none of {', '.join(FORMATS)}")
    if which not in ("teacher", "student"):
        raise UserError(f"which is '{which}', which is neither teacher nor student")
    if push is not None:
        from dino_x.exporting.hub import check_push

        check_push(push, public)
    write(name_at(model, step, which), Path(to), format, console(verbose))
    if push is not None:
        from dino_x.exporting.hub import push as upload

        upload(Path(to), push, public, console(verbose))
    return Path(to)


def index(
    data: Paths,
    out: PathLike,
    *,
    labels: PathLike | None = None,
    label_column: str = "label",
    slice_axis: str = "axial",
    modality: str = "auto",
    axes: str = "auto",
    workers: int | None = None,
    verbose: bool = False,
) -> Path:
    """Write or continue an index of images, a Parquet file.

    Args:
        data: folders and files.
        out: the index; where it is there, only new and changed files are read.
        labels: ``folder``, ``column`` or a CSV file, to have classes in the table.
        label_column: column of the CSV file that holds the class.
        slice_axis: how volumes are cut: axial, coronal or sagittal.
        modality: of files that name none, such as CT.
        axes: of NumPy and TIFF files that do not name them, such as HWN.
        workers: headers read at a time; the number of cores if None.
        verbose: print the summary.

    Returns: the index.

    Raises: UserError for paths, labels or an index that cannot be used; what existed is kept.
    """
    from dino_x.commands.index import make_index
    from dino_x.config.presets import check
    from dino_x.data.image import Reading

    options = check({"data.slice_axis": slice_axis, "data.modality": modality, "data.axes": axes})
    make_index(
        as_paths(data),
        Path(out),
        console(verbose),
        reading=Reading.of(options.data),
        labels=text(labels),
        label_column=label_column,
        workers=workers,
    )
    return Path(out)


def plan(
    data: Paths | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    config: PathLike | None = None,
    model: PathLike | None = None,
    effective_batch: int | None = None,
    steps: int | None = None,
    preset: str | None = None,
    gpu: str | None = None,
    gpus: int = 1,
    mfu: float | None = None,
    price: float | None = None,
    images: int | None = None,
    measure: bool = True,
    verbose: bool = False,
) -> Plan:
    """Will it fit, how long will it take, what will it cost?

    Args:
        data: as of ``pretrain``; None for a plan without data.
        options: any options by section, as of ``pretrain``.
        config: a YAML file of options.
        model: a size such as ``vits16``, or weights.
        effective_batch: images that an optimizer step looks at.
        steps: optimizer steps.
        preset: auto, try, small, dinov3, continue or highres.
        gpu: the name of a GPU to calculate for, such as h100; None measures on this machine.
        gpus: how many share each step.
        mfu: the share of the GPU's peak that is reached, 0 to 1; None assumes one.
        price: of one GPU an hour.
        images: how many there are, without data.
        measure: whether there is a trial on this machine.
        verbose: print the plan.

    Raises: UserError for a GPU that is not known, or options that do not fit.
    """
    from dino_x.cost.gpus import gpu_of
    from dino_x.planning.plan import Request
    from dino_x.planning.plan import plan as make
    from dino_x.planning.table import print_plan

    flags = {
        "data.paths": None if data is None else as_strings(data),
        "model.name": text(model),
        "train.effective_batch": effective_batch,
        "train.steps": steps,
        "preset": preset,
    }
    request = Request(
        gpu=None if gpu is None else gpu_of(gpu),
        gpus=gpus,
        mfu=mfu,
        price=price,
        measure=measure,
        images=images,
    )
    screen = console(verbose)
    result = make(collected(options, config, flags), request, screen)
    print_plan(result, screen)
    return result


def collected(
    options: Mapping[str, Mapping[str, Any]] | None,
    config: PathLike | None,
    flags: Mapping[str, Any],
) -> dict[str, Any]:
    """All that was asked for, as ``section.key`` values; arguments win over options and file.

    Raises: UserError for options that are not sections of options.
    """
    from dino_x.config.presets import collect_overrides, dotted

    overrides = collect_overrides(None if config is None else Path(config), [], {})
    for section, values in (options or {}).items():
        if not isinstance(values, Mapping):
            raise UserError(
                f"options: '{section}' is {values!r}; expected a section and its options, such as"
                " options={'optim': {'lr': 1e-3}}"
            )
        overrides |= dotted({section: values})
    return overrides | {name: value for name, value in flags.items() if value is not None}
