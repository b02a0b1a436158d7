"""From what the user said to a finished run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dino_x.config import Options
from dino_x.data.cache import canvas_side
from dino_x.data.index import Index, build_index, is_grey, write_skipped
from dino_x.data.loader import Loader
from dino_x.errors import UserError
from dino_x.evaluation.labels import load_labels
from dino_x.evaluation.suite import evaluate, print_table, write_json
from dino_x.model.backbone import build_backbone, is_size
from dino_x.presets import check, differing, resolve
from dino_x.progress import progress_bar
from dino_x.training.device import choose_device, describe_device, dtype_of
from dino_x.training.micro_batch import check_divides, largest_that_fits
from dino_x.training.origin import write_origin
from dino_x.training.policy import Policy, centering_policy
from dino_x.training.report import TrainingReport
from dino_x.training.run import RunFolder
from dino_x.training.schedules import peak_lr
from dino_x.training.start import inherited
from dino_x.training.trainer import Trainer
from dino_x.training.window import Cutter
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
    run = RunFolder(out)
    said = settings(said, run, resume)
    early = check(said)
    if isinstance(early.train.micro_batch, int):
        check_divides(early.train.effective_batch, early.train.micro_batch)
    device = choose_device(early.train.device)
    if not is_size(early.model.name):
        build_backbone(early.model, early.views.global_size, 0)  # fail before reading images
    index = read_index(early, console)
    held_out = hold_out(early, index)
    options, preset_line = resolve(said, len(index), inherited(said))
    prepared = prepare(options, run, index)
    if resume and run.exists:
        prepared.trainer.resume()
    else:
        if resume:
            console.print(f"nothing to resume in {out}: starting anew", highlight=False)
        write_origin(run, options.model.name, prepared.trainer.student.backbone)
        run.create(options, {"images": f"{len(index):,}", "device": describe_device(device)})
    write_skipped(index.skipped, run.skipped)
    announce(prepared, preset_line, held_out, console)
    train(prepared, run, console)
    say_where(run, console)
    if options.data.labels:
        evaluate_run(options, run, console)
    return run


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
        )


def hold_out(options: Options, index: Index) -> int:
    """Take the images that the labels are tested on out of the index; how many they are.

    Raises: UserError if the labels cannot be used: now, not after training.
    """
    data = options.data
    if not data.labels:
        return 0
    labelled = load_labels(data.labels, index.rows, data.paths, label_column=data.label_column)
    if not data.hold_out:
        return 0
    tested = {ref for ref, test in zip(labelled.refs, labelled.is_test, strict=True) if test}
    index.rows = [ref for ref in index.rows if ref not in tested]
    return len(tested)


def prepare(options: Options, run: RunFolder, index: Index) -> Prepared:
    """Policy, model, loader and micro-batch of a run; ``options`` get their last values."""
    policy = centering_policy(options.loss, options.train.effective_batch)
    options.loss.centering = policy.centering
    options.loss.koleo_weight = policy.koleo_weight
    check_koleo_group(options)
    views = options.views
    sets = crop_sizes(options)
    crops = [(sizes.global_size, views.global_scale[0]) for sizes in sets]
    if options.gram.weight:
        crops += [(sizes.gram_size or 0, views.global_scale[0]) for sizes in sets]
    if views.local_crops:
        crops += [(sizes.local_size, views.local_scale[0]) for sizes in sets]
    backbone = build_backbone(options.model, views.global_size, options.train.seed)
    loader = Loader(
        index,
        canvas_side(index, crops),
        1 if backbone.channels == 1 or is_grey(index.rows) else 3,
        cache_bytes=options.data.cache_mb * 2**20,
        workers=options.data.workers,
    )
    device = choose_device(options.train.device)
    dtype = dtype_of(options.train.precision)
    cutter = Cutter(options, backbone.mean, backbone.std, device, dtype)
    trainer = Trainer(options, run, loader, len(index), hash_of(index), cutter, backbone)
    check_patches(options, trainer)
    if options.train.micro_batch == "auto":
        options.train.micro_batch = largest_that_fits(
            options.train.effective_batch, device, trainer.try_micro_batch
        )
    check_divides(options.train.effective_batch, options.train.micro_batch)
    return Prepared(trainer, loader, index, policy)


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


def announce(prepared: Prepared, preset_line: str, held_out: int, console: Console) -> None:
    """What is about to happen, in a few aligned lines."""
    trainer, index = prepared.trainer, prepared.index
    options, backbone = trainer.options, trainer.student.backbone
    train, optim = options.train, options.optim
    assert isinstance(train.micro_batch, int)
    assert train.steps is not None
    parameters = sum(weight.numel() for weight in backbone.parameters()) / 1e6
    skipped = f", {len(index.skipped)} files skipped (see skipped.csv)" if index.skipped else ""
    held = f", {held_out:,} more held out to be tested on" if held_out else ""
    steps_per_pass = len(index) / train.effective_batch
    lines = {
        "images": f"{len(index):,}{held}{skipped}",
        "model": f"{options.model.name}, {backbone.depth} layers x {backbone.width},"
        f" {parameters:.1f} M parameters; {options.head.prototypes:,} prototypes a head",
        "settings": preset_line,
        "device": f"{describe_device(trainer.cutter.device)}, {train.precision}",
        "batch": f"{train.effective_batch} images a step, in micro-batches of {train.micro_batch}",
        "centering": prepared.policy.message,
        "steps": f"{train.steps:,} = {train.steps / steps_per_pass:.1f} passes over the images",
        "rate": f"{peak_lr(options):.3g} = {optim.lr:g} x sqrt({train.effective_batch} /"
        f" {optim.lr_batch}), after {optim.warmup} steps of warmup",
    }
    if backbone.accounting is not None:
        heads = "the run's" if options.model.heads_from == "run" else "new"
        lines["weights"] = f"{backbone.accounting.line()}; heads: {heads}"
    lines |= stage_lines(options)
    if trainer.done:
        lines["resumed"] = f"after step {trainer.done:,}"
    for name, line in lines.items():
        partial = backbone.accounting is not None and not backbone.accounting.whole
        warn = {"centering": prepared.policy.warning, "weights": partial}
        style = "yellow" if warn.get(name) else None
        console.print(f"{name:<10}{line}", style=style, highlight=False, soft_wrap=True)
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
    report = TrainingReport(
        run, console, options.train.steps, trainer.done, options.head.prototypes
    )
    try:
        with report, prepared.loader:
            trainer.train(report)
    finally:
        write_skipped(prepared.index.skipped + prepared.loader.skipped, run.skipped)


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
            device=options.train.device,
            seed=options.train.seed,
            progress=progress,
        )
    write_json(result, run.evaluation)
    print_table(result, console)
