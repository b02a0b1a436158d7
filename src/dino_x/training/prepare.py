"""From resolved options to a run ready to train; what cannot go together is refused here."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dino_x.config.options import Options
from dino_x.config.resolve import Resolved
from dino_x.cost.shapes import Step
from dino_x.data.canvas.canvas import CanvasForm, Crop, canvas_side
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index, is_grey, is_plain
from dino_x.data.index.labels import Labelled
from dino_x.data.index.rows import Rows, hash_of_rows
from dino_x.data.loading.loader import Loader
from dino_x.data.loading.neighbours import neighbours
from dino_x.data.loading.order import order_of
from dino_x.data.loading.sampler import COMPUTED_FROM, ORDER
from dino_x.data.readers.decoding import Decoding, decoding_in
from dino_x.data.storage import row_groups
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.member import file_of
from dino_x.distributed.sharding import check_torch
from dino_x.distributed.shares import all_sizes, check_divides, check_equally_many
from dino_x.distributed.world import all_or_none, broadcast_from_rank0, gather_objects
from dino_x.errors import UserError
from dino_x.losses.ranks import Ranks
from dino_x.machine.device import dtype_of
from dino_x.model.backbone import Backbone, build_backbone
from dino_x.runs.folder import RunFolder
from dino_x.training.micro_batch import (
    Chosen,
    device_key,
    find,
    remembered,
    sizes_of,
)
from dino_x.training.online import Online, labelled_rows
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps
from dino_x.training.trainer import Trainer
from dino_x.views.extra import checked_extra
from dino_x.views.sizes import crop_sizes, early_sizes, late_sizes

_FILES_LOOKED_AT = 1000


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train."""

    trainer: Trainer
    loader: Loader
    index: Index
    resolved: Resolved
    micro_batch: Chosen
    devices: list[str]  # of all processes, see micro_batch.py


def prepare(
    resolved: Resolved,
    backbone: Backbone | None,
    run: RunFolder,
    index: Index,
    device: torch.device,
    ranks: Ranks,
    console: Console,
) -> Prepared:
    """Model, loader and micro-batch of a run.

    Args:
        resolved: the options.
        backbone: the student's, if its weights are loaded already.
        run: where it is kept.
        index: the images.
        device: of this process.
        ranks: the processes.
        console: where to say what happens.

    Raises: UserError for what does not fit together.
    """
    options = resolved.options
    if options.train.shard == "full":
        check_torch()
    row_groups.groups.limit_bytes = options.data.row_groups_mb * 2**20
    check_koleo_group(options)
    backbone = student_backbone(options, backbone)
    if options.data.slices == 3 and backbone.channels != 3:
        raise UserError(
            f"data.slices {options.data.slices} needs a model of as many channels, and this one has"
            f" {backbone.channels}; set model.channels={options.data.slices}, or data.slices=1"
        )
    decoding = decoding_in(options.data.decode_in)
    form = canvas_form(options, index, backbone.channels, decoding)
    check_stains(options, form)
    loader = Loader(
        index,
        form,
        cache_bytes=options.data.cache_mb * 2**20,
        workers=options.data.workers,
        fetches=options.data.fetches,
        store=open_store(options, index, form, console),
        decoding=decoding,
    )
    dtype = dtype_of(options.train.precision)
    extra = checked_extra(options, form.channels, device, dtype)
    cutter = Cutter(options, backbone.mean, backbone.std, device, dtype, extra)
    order = order_of(index.rows, options.data.source_weights, index.patients)
    steps = Steps(options, loader, len(index), cutter, backbone, order, ranks)
    own = steps.student.backbone.patch_size
    gram = own if steps.gram is None else steps.gram.backbone.patch_size
    check_patches(options, own, gram)
    devices = gather_objects(ranks, device_key(device))
    chosen = choose_micro_batch(steps, run, step_of(steps, form), devices)
    effective_batch = options.train.effective_batch
    if ranks.world_size == 1:
        check_divides(effective_batch, chosen.size)
    if steps.sharded:
        check_equally_many(effective_batch, chosen.size, ranks.world_size)
    chosen = replace(chosen, size=max(all_sizes(effective_batch, chosen.size, ranks.world_size)))
    steps.use_micro_batch(chosen.size)
    plain = options.data.slices == 1 and is_plain(index.rows, options.windows, decoding)
    grey = form.channels == 1 and backbone.channels == 3
    trainer = Trainer(steps, run, hash_of(index), plain, grey)
    return Prepared(trainer, loader, index, resolved, chosen, devices)


def student_backbone(options: Options, loaded: Backbone | None) -> Backbone:
    """The student's backbone: the one whose weights are loaded already, or another one."""
    if loaded is None:
        return build_backbone(options.model, options.views.global_size, options.train.seed)
    loaded.drop_path = options.model.drop_path  # a preset may have set it since
    return loaded


def choose_micro_batch(steps: Steps, run: RunFolder, step: Step, devices: list[str]) -> Chosen:
    """The one that the user named, else the one that the run remembers, else the one that fits."""
    ranks, asked = steps.ranks, steps.options.train.micro_batch
    if isinstance(asked, int):
        return Chosen(asked)
    before = broadcast_from_rank0(ranks, lambda: remembered(run))
    if before is not None:
        size, auto, where = before
        if auto and where == devices and size in sizes_of(step):
            return Chosen(size, "as it was found for this run")
    device = steps.cutter.device
    if steps.sharded and device.type == "cuda":
        raise UserError(
            "train.shard=full needs --micro-batch N: a size that does not fit in one process"
            " would leave the others waiting, so none can be tried"
        )
    # A loader may give up in one process, while others would wait for its number.
    found = all_or_none(ranks, lambda: find(step, device, steps.try_micro_batch))
    smallest = min(size for (size,) in ranks.numbers([found.size], device))
    if before is not None and not found.warning:
        found = replace(found, why=f"{found.why}, anew for other devices or processes")
    return replace(found, size=smallest)


def step_of(steps: Steps, form: CanvasForm) -> Step:
    """A step of this process as numbers; the micro-batch is 1."""
    distilled = steps.targets_of if steps.state.distilled is not None else None
    return Step.of(
        steps.options,
        steps.student,
        targets=distilled,
        gram=None if steps.gram is None else steps.gram.backbone,
        processes=steps.ranks.world_size,
        canvas=form.side,
        channels=form.channels,
        images=steps.images,
    )


def canvas_form(
    options: Options, index: Index, channels: int, decoding: Decoding | None = None
) -> CanvasForm:
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
    colours = channels == 3 and data.slices == 1
    if colours and is_grey(index.rows, decoding):
        channels = 1
    return CanvasForm(
        side=canvas_side(index, crops, data.spacing_mm),
        channels=channels,
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
        check_not_needed(options)
        return None
    return Online(
        source=prepared.loader,
        cutter=trainer.cutter,
        images=len(prepared.index),
        micro_batch=options.train.micro_batch,
        precision=trainer.steps.exact_step.precision,
        labelled=None
        if labelled is None
        else labelled_rows(
            labelled, prepared.index.rows, options.online.images, options.train.seed
        ),
    )


def check_not_needed(options: Options) -> None:
    """Refuse options that take the evaluation while training, which is off. Raises UserError."""
    for name, wanted in (
        ("checkpoint.keep_best", options.checkpoint.keep_best),
        ("online.patience", options.online.patience is not None),
    ):
        if wanted:
            raise UserError(
                f"{name} needs the evaluation while training, which is off: set online.every to"
                " the steps between two"
            )


def check_koleo_group(options: Options) -> None:
    """Refuse a KoLeo group that cannot be cut from the effective batch."""
    group, batch = options.loss.koleo_group, options.train.effective_batch
    if options.loss.regularizer != "koleo" or not options.loss.koleo_weight:
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


def check_stains(options: Options, form: CanvasForm) -> None:
    """Refuse other stains in images that have no colours. Raises UserError."""
    if not options.views.varies_stains or (form.channels == 3 and form.slices == 1):
        return
    what = "the images are grey"
    if form.slices == 3:
        what = "data.slices=3 has slices for channels"
    elif form.channels != 1:
        what = f"the images have {form.channels} channels"
    raise UserError(
        f"views.stain and views.stain_shift change the colours of stained tissue, and {what}; set"
        " both to 0"
    )


def check_patches(options: Options, own: int, gram: int) -> None:
    """Refuse crops that are not a whole number of patches, of the model's size and the Gram
    teacher's.

    Raises: UserError naming the nearest sizes that are.
    """
    of_set = "views.sizes: " if options.views.sizes else ""
    sizes = [("views.global_size", options.views.global_size, own)]
    early = early_sizes(options)
    if early is not None:
        sizes.append(("views.early_global_size", early.global_size, own))
        if options.views.local_crops:
            sizes.append(("views.early_local_size", early.local_size, own))
        if options.gram.weight:
            sizes.append(("gram.size", early.gram_size or 0, gram))
    for one in late_sizes(options):
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
    """Changes when images are added, removed, renamed or change their size.

    Of very many images whose order is computed it also changes with the rule of that order.
    """
    if len(index) >= COMPUTED_FROM:
        return hashlib.sha256(f"{ORDER}|{hash_of_rows(index.rows)}".encode()).hexdigest()
    return hash_of_rows(index.rows)


def files_hash(index: Index) -> str:
    """Of the names and sizes of the files as this machine sees them.

    Of a large index these are a thousand files that are evenly spread, and the index as a whole.
    """
    digest = hashlib.sha256()
    rows: Iterable[ImageRef] = index.rows
    if isinstance(index.rows, Rows):
        digest.update(hash_of_rows(index.rows).encode())
        places = np.unique(np.linspace(0, len(index) - 1, _FILES_LOOKED_AT).round().astype(int))
        rows = (index.rows[place] for place in places)
    for path in dict.fromkeys(file_of(row.path) for row in rows):
        if is_remote(path):  # a store is the same for all machines
            digest.update(f"{path}\n".encode(errors="replace"))
            continue
        try:
            digest.update(f"{path}|{path.stat().st_size}\n".encode(errors="replace"))
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()
