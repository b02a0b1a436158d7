"""From what the user said to a finished run."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dino_x import __version__
from dino_x.config import Options
from dino_x.data.cache import CanvasForm, Crop, canvas_side
from dino_x.data.index import Index, build_index, is_grey, write_skipped
from dino_x.data.loader import Loader
from dino_x.data.sampler import strata_of
from dino_x.data.store import CanvasStore, keys_of
from dino_x.data.volumes import neighbours, refuse_uneven
from dino_x.errors import UserError
from dino_x.evaluation.labels import Labelled, load_labels
from dino_x.evaluation.suite import QUICK, evaluate, write_json
from dino_x.evaluation.table import print_table
from dino_x.losses.ranks import Ranks
from dino_x.model.backbone import build_backbone, is_size
from dino_x.presets import check, differing, resolve
from dino_x.progress import progress_bar
from dino_x.report.write import report_at_end
from dino_x.training.device import choose_device, describe_device, dtype_of
from dino_x.training.micro_batch import check_divides, largest_that_fits
from dino_x.training.online import Online, labelled_rows
from dino_x.training.origin import write_origin
from dino_x.training.policy import Policy, centering_policy
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.run import RunFolder
from dino_x.training.schedules import peak_lr
from dino_x.training.start import inherited
from dino_x.training.trainer import Trainer
from dino_x.training.window import Cutter
from dino_x.training.world import (
    check_same,
    device_of,
    from_all,
    from_first,
    joined,
    place,
    together,
)
from dino_x.views.sizes import crop_sizes


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train."""

    trainer: Trainer
    loader: Loader
    index: Index
    policy: Policy


def pretrain(said: Mapping[str, Any], out: Path, resume: bool, console: Console) -> RunFolder:
    """Train, or go on training, in the folder ``out``; evaluate if there are labels.

    Args:
        said: what the user set, as ``section.key`` values.
        out: the RUN folder.
        resume: go on from its newest checkpoint; a folder without a run is started anew.
        console: where to say what happens.

    Raises: UserError for everything the user can put right; what existed is kept.
    """
    where = place(os.environ)
    device = device_of(choose_device(str(said.get("train.device") or "auto")), where)
    run = RunFolder(out)
    with joined(where, device) as ranks:
        if ranks.own > 0:
            console = Console(quiet=True)
        options = train_together(said, run, resume, device, ranks, console)
    if where.rank == 0:
        say_where(run, console)
        if options.data.labels:
            evaluate_run(options, run, console)
        if options.report.page:
            report_at_end(run.path, console)
    return run


def train_together(
    said: Mapping[str, Any],
    run: RunFolder,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
    console: Console,
) -> Options:
    """What all processes of a run do, each with its share of the images; the resolved options."""
    resumed = resume and run.exists
    said = together(ranks, lambda: settings(said, run, resume))
    early = together(ranks, lambda: early_checks(said, ranks))
    index, held_out, labelled = from_first(ranks, lambda: images_of(early, console))
    options, preset_line = resolve(said, len(index), inherited(said))
    prepared = together(ranks, lambda: prepare(options, run, index, device, ranks, console))
    prepared.trainer.online = online(prepared, labelled)
    check_same(ranks, "images", files_hash(index) if ranks.count > 1 else "")
    check_same(ranks, "settings", f"{__version__} {options.model_dump_json()}")
    together(ranks, lambda: begin(prepared, resumed, resume, console))
    announce(prepared, preset_line, held_out, console)
    train(prepared, run, console)
    return options


def early_checks(said: Mapping[str, Any], ranks: Ranks) -> Options:
    """What can be refused before images are read."""
    early = check(said)
    train = early.train
    if isinstance(train.micro_batch, int):
        check_divides(train.effective_batch, train.micro_batch, ranks.count)
    elif train.effective_batch % ranks.count:
        check_divides(train.effective_batch, 1, ranks.count)
    if not is_size(early.model.name):
        build_backbone(early.model, early.views.global_size, 0)
    return early


def images_of(options: Options, console: Console) -> tuple[Index, int, Labelled | None]:
    """The images to train on, how many are held out, and the labels."""
    index = read_index(options, console)
    held_out, labelled = hold_out(options, index)
    if options.data.slices == 3:
        refuse_uneven(index)
    return index, held_out, labelled


def begin(prepared: Prepared, resumed: bool, resume: bool, console: Console) -> None:
    """Take up the run's newest checkpoint, or make its folder."""
    trainer, index = prepared.trainer, prepared.index
    if resumed:
        trainer.resume()
    elif trainer.ranks.own == 0:
        if resume:
            console.print(
                f"nothing to resume in {trainer.run.path}: starting anew", highlight=False
            )
        device = describe_device(trainer.cutter.device)
        write_origin(trainer.run, trainer.options.model.name, trainer.student.backbone)
        trainer.run.create(trainer.options, {"images": f"{len(index):,}", "device": device})
    if trainer.ranks.own == 0:
        write_skipped(index.skipped, trainer.run.skipped)


def settings(said: Mapping[str, Any], run: RunFolder, resume: bool) -> dict[str, Any]:
    """What the user set, on top of a resumed run's own settings.

    Raises: UserError if there is a run and no ``--resume``, or a resume changes a setting.
    """
    if not (resume and run.exists):
        if not resume or run.path.is_file():
            run.refuse_if_taken()
        if not said.get("data.paths"):
            raise UserError("nothing to train on; name a folder of images with --data")
        return dict(said)
    saved = run.settings()
    changed = differing(saved, said)
    if changed:
        raise UserError(
            f"{run.path} was trained with other settings: {'; '.join(changed)}; leave them out to"
            " resume, or start a new run in another --out"
        )
    return {**saved, **said}


def read_index(options: Options, console: Console) -> Index:
    """All images that can be read, with a progress bar."""
    with progress_bar(console, "reading images") as on_progress:
        return build_index(
            [Path(path) for path in options.data.paths],
            verify=options.data.verify,
            workers=options.data.workers,
            on_progress=on_progress,
            reading=options.data.reading,
            kept_in=Path(options.data.index) if options.data.index else None,
            where=options.data.where,
        )


def hold_out(options: Options, index: Index) -> tuple[int, Labelled | None]:
    """Take the images that the labels are tested on out of the index.

    Returns: how many they are, and the labelled images, if there are labels.

    Raises: UserError if the labels cannot be used: now, not after training.
    """
    data = options.data
    if not data.labels:
        return 0, None
    labelled = load_labels(data.labels, index.rows, data.paths, label_column=data.label_column)
    if not data.hold_out:
        return 0, labelled
    tested = {ref for ref, test in zip(labelled.refs, labelled.is_test, strict=True) if test}
    index.rows = [ref for ref in index.rows if ref not in tested]
    return len(tested), labelled


def prepare(
    options: Options,
    run: RunFolder,
    index: Index,
    device: torch.device,
    ranks: Ranks,
    console: Console,
) -> Prepared:
    """Policy, model, loader and micro-batch of a run; ``options`` get their last values."""
    policy = centering_policy(options.loss, options.train.effective_batch)
    options.loss.centering = policy.centering
    options.loss.koleo_weight = policy.koleo_weight
    check_koleo_group(options)
    backbone = build_backbone(options.model, options.views.global_size, options.train.seed)
    if options.data.slices > backbone.channels:
        raise UserError(
            f"data.slices {options.data.slices} needs a model of as many channels, and this one has"
            f" {backbone.channels}; set model.channels={options.data.slices}, or data.slices=1"
        )
    form = canvas_form(options, index, backbone.channels)
    loader = Loader(
        index,
        form,
        cache_bytes=options.data.cache_mb * 2**20,
        workers=options.data.workers,
        store=open_store(options, index, form, console),
    )
    dtype = dtype_of(options.train.precision)
    cutter = Cutter(options, backbone.mean, backbone.std, device, dtype)
    strata = strata_of(index.rows, options.data.source_weights)
    trainer = Trainer(
        options, run, loader, len(index), hash_of(index), cutter, backbone, strata, ranks
    )
    check_patches(options, trainer)
    if options.train.micro_batch == "auto":
        share = options.train.effective_batch // ranks.count
        fits = largest_that_fits(share, device, trainer.try_micro_batch)
        options.train.micro_batch = min(size for (size,) in ranks.numbers([fits], device))
    micro_batch = options.train.micro_batch
    assert isinstance(micro_batch, int)
    check_divides(options.train.effective_batch, micro_batch, ranks.count)
    return Prepared(trainer, loader, index, policy)


def canvas_form(options: Options, index: Index, channels: int) -> CanvasForm:
    """How the canvases of a run are made, for a network of so many input channels."""
    views, data = options.views, options.data
    globals_mm, locals_mm = views.global_scale_mm, views.local_scale_mm
    crops = []
    for sizes in crop_sizes(options):
        seen = [sizes.global_size, *([sizes.gram_size or 0] if options.gram.weight else [])]
        side_mm = globals_mm[0] if globals_mm else None
        crops += [Crop(size, views.global_scale[0], side_mm) for size in seen]
        if views.local_crops:
            side_mm = locals_mm[0] if locals_mm else None
            crops.append(Crop(sizes.local_size, views.local_scale[0], side_mm))
    grey = channels == 1 or (data.slices == 1 and is_grey(index.rows))
    return CanvasForm(
        side=canvas_side(index, crops, data.spacing_mm),
        channels=1 if grey else 3,
        slices=data.slices,
        spacing_mm=data.spacing_mm,
        windows=options.windows,
    )


def open_store(
    options: Options, index: Index, form: CanvasForm, console: Console
) -> CanvasStore | None:
    """The cache on disk, if there is to be one."""
    data = options.data
    if data.cache is None:
        return None
    triples = neighbours(index.rows).triples if form.slices == 3 else None
    return CanvasStore(
        Path(data.cache),
        keys_of(index.rows, form, triples),
        form,
        limit_bytes=int(data.cache_gb * 1e9),
        say=lambda line: console.print(line, style="yellow", highlight=False, soft_wrap=True),
    )


def online(prepared: Prepared, labelled: Labelled | None) -> Online | None:
    """The evaluation while training: kNN where labels allow it, else retrieval; None if off."""
    trainer, options = prepared.trainer, prepared.trainer.options
    assert isinstance(options.train.micro_batch, int)
    if not options.online.every:
        return None
    return Online(
        source=prepared.loader,
        cutter=trainer.cutter,
        images=len(prepared.index),
        micro_batch=options.train.micro_batch,
        precision=trainer.effective_batch.precision,
        labelled=None
        if labelled is None
        else labelled_rows(
            labelled, prepared.index.rows, options.online.images, options.train.seed
        ),
    )


def check_koleo_group(options: Options) -> None:
    """Refuse a KoLeo group that cannot be cut from the effective batch."""
    group, batch = options.loss.koleo_group, options.train.effective_batch
    if not options.loss.koleo_weight:
        return
    if batch < 2:
        raise UserError(
            "KoLeo looks for neighbours and needs an effective batch of 2 or more; set"
            " loss.koleo_weight=0 to train on one image a step"
        )
    if group != "effective" and (group < 2 or batch % group):
        raise UserError(
            f"loss.koleo_group {group} must be 2 or more and divide the effective batch {batch}"
        )


def check_patches(options: Options, trainer: Trainer) -> None:
    """Refuse crops that are not a whole number of patches.

    Raises: UserError naming the nearest sizes that are.
    """
    own = trainer.student.backbone.patch_size
    gram = trainer.gram.backbone.patch_size if trainer.gram else own
    of_set = "views.sizes: " if options.views.sizes else ""
    sizes = [("views.global_size", options.views.global_size, own)]
    for one in crop_sizes(options):
        sizes.append(((of_set or "views.") + "global_size", one.global_size, own))
        if options.views.local_crops:
            sizes.append(((of_set or "views.") + "local_size", one.local_size, own))
        if options.gram.weight:
            name = f"{of_set}gram_size" if of_set else "gram.size"
            sizes.append((name, one.gram_size or 0, gram))
    for name, size, patch in sizes:
        if size % patch:
            below = size // patch * patch
            near = ", ".join(str(n) for n in (below, below + patch) if n)
            raise UserError(
                f"{name} {size} is not a multiple of the patch size {patch}; nearest: {near}"
            )


def hash_of(index: Index) -> str:
    """Changes when images are added, removed, renamed or change their size."""
    digest = hashlib.sha256()
    for row in index.rows:
        digest.update(
            f"{row.path.name}|{row.frame}|{row.height}|{row.width}\n".encode(errors="replace")
        )
    return digest.hexdigest()


def files_hash(index: Index) -> str:
    """Of the names and sizes of the files as this machine sees them."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(row.path for row in index.rows):
        try:
            digest.update(f"{path}|{path.stat().st_size}\n".encode(errors="replace"))
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()


def announce(prepared: Prepared, preset_line: str, held_out: int, console: Console) -> None:
    """What is about to happen, in a few aligned lines."""
    trainer, index = prepared.trainer, prepared.index
    options, backbone = trainer.options, trainer.student.backbone
    train, optim = options.train, options.optim
    assert isinstance(train.micro_batch, int)
    assert train.steps is not None
    parameters = sum(weight.numel() for weight in backbone.parameters()) / 1e6
    left = len(index.skipped)
    skipped = f", {left} file{'s' * (left > 1)} skipped (see skipped.csv)" if left else ""
    held = f", {held_out:,} more held out to be tested on" if held_out else ""
    processes = f" on each of {trainer.ranks.count} processes" if trainer.ranks.count > 1 else ""
    steps_per_pass = len(index) / train.effective_batch
    lines = {
        "images": f"{len(index):,}{held}{skipped}",
        "model": f"{options.model.name}, {backbone.depth} layers x {backbone.width},"
        f" {parameters:.1f} M parameters; {options.head.prototypes:,} prototypes a head",
        "settings": preset_line,
        "device": f"{describe_device(trainer.cutter.device)}, {train.precision}",
        "batch": f"{train.effective_batch} images a step, in micro-batches of {train.micro_batch}"
        + processes,
        "centering": prepared.policy.message,
        "steps": f"{train.steps:,} = {train.steps / steps_per_pass:.1f} passes over the images",
        "rate": f"{peak_lr(options):.3g} = {optim.lr:g} x sqrt({train.effective_batch} /"
        f" {optim.lr_batch}), after {optim.warmup} steps of warmup",
    }
    if backbone.accounting is not None:
        heads = "the run's" if options.model.heads_from == "run" else "new"
        lines["weights"] = f"{backbone.accounting.line()}; heads: {heads}"
    if prepared.loader.store is not None:
        cached = len(prepared.loader.store)
        lines["cache"] = f"{options.data.cache}, {cached:,} of {len(index):,} images are in it"
    lines |= stage_lines(options)
    if trainer.done:
        lines["resumed"] = f"after step {trainer.done:,}"
    for name, line in lines.items():
        partial = backbone.accounting is not None and not backbone.accounting.whole
        warn = {"centering": prepared.policy.warning, "weights": partial}
        style = "yellow" if warn.get(name) else None
        console.print(f"{name:<10}{line}", style=style, highlight=False, soft_wrap=True)
    for note in index.notes:
        console.print(f"{'note':<10}{note}", style="yellow", highlight=False, soft_wrap=True)
    if len(index) < train.effective_batch:
        console.print(
            f"{'warning':<10}fewer images ({len(index)}) than an effective batch"
            f" ({train.effective_batch}): some appear several times in each step",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip


def stage_lines(options: Options) -> dict[str, str]:
    """What a stage has that plain pretraining has not."""
    lines, gram, frozen = {}, options.gram, options.optim.freeze_backbone
    if options.teacher.model:
        lines["teacher"] = f"{options.teacher.model}, frozen: its heads make the targets"
    if frozen:
        lines["frozen"] = f"the backbone, for the first {frozen:,} steps: the heads warm up"
    if options.views.sizes:
        local = options.views.local_crops
        sets = (
            f"{s.global_size}{f' and {s.local_size}' if local else ''} px"
            for s in options.views.sizes
        )
        lines["crops"] = f"one set of sizes a step, of {'; '.join(sets)}"
    if gram.weight:
        source = gram.teacher or f"the EMA teacher of step {gram.start:,}"
        anew = f", taken anew every {gram.refresh:,} steps" if gram.refresh else ""
        lines["gram"] = f"weight {gram.weight:g}, held to {source}{anew}"
    return lines


def train(prepared: Prepared, run: RunFolder, console: Console) -> None:
    """The loop, with its report; what turned out unreadable is added to skipped.csv."""
    trainer, options = prepared.trainer, prepared.trainer.options
    assert options.train.steps is not None
    if trainer.ranks.own > 0:
        with prepared.loader:
            trainer.train(NoReport())
        from_all(trainer.ranks, prepared.loader.skipped)
        return
    report = TrainingReport(
        run, console, options.train.steps, trainer.done, options.head.prototypes
    )
    skipped = prepared.loader.skipped
    try:
        with report, prepared.loader:
            trainer.train(report)
        skipped = [skip for part in from_all(trainer.ranks, skipped) for skip in part]
    finally:
        write_skipped(prepared.index.skipped + skipped, run.skipped)


def say_where(run: RunFolder, console: Console) -> None:
    """Where the model is and how to load it."""
    console.print(
        f"model     {run.model}  (load it with transformers.AutoModel.from_pretrained)",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def evaluate_run(options: Options, run: RunFolder, console: Console) -> None:
    """Write ``evaluation.json`` from the labels named in the options, and print its table."""
    assert options.data.labels is not None
    with progress_bar(console, "evaluating") as progress:
        result = evaluate(
            run.path,
            options.data.paths,
            options.data.labels,
            label_column=options.data.label_column,
            tasks=QUICK,
            device=options.train.device,
            seed=options.train.seed,
            progress=progress,
        )
    write_json(result, run.evaluation)
    print_table(result, console)
