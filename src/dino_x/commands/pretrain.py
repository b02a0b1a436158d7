"""From what the user asked for to a finished run."""

import os
import shlex
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dino_x.commands.announce import announce
from dino_x.config.options import Options
from dino_x.config.presets import dotted
from dino_x.config.resolve import Facts, resolve
from dino_x.data.index.index import Skipped, write_skipped
from dino_x.data.index.labels import Labelled
from dino_x.data.storage.archives import address
from dino_x.distributed.shares import usable
from dino_x.distributed.world import (
    all_or_none,
    broadcast_from_rank0,
    check_same,
    device_of,
    gather_objects,
    joined,
    process_info,
)
from dino_x.errors import StoppedError, UserError
from dino_x.evaluation.suite import evaluate
from dino_x.evaluation.table import print_table
from dino_x.evaluation.tasks import QUICK
from dino_x.files import write_atomically, write_json
from dino_x.losses.ranks import Ranks
from dino_x.machine.device import choose_device, describe_device
from dino_x.progress import progress_bar
from dino_x.report.write import report_at_end
from dino_x.runs.environment import add_start, describe
from dino_x.runs.folder import RunFolder
from dino_x.runs.going_on import check_same_content, restore_settings, saved_settings
from dino_x.runs.model_folder import newest_step
from dino_x.runs.origin import write_origin
from dino_x.runs.start import inherited
from dino_x.runs.trained_on import keep_keys, keep_split, kept_split, keys_of_images
from dino_x.terminal import Terminal
from dino_x.training.best import best_checkpoint
from dino_x.training.images import early_checks, images_of
from dino_x.training.loggers import open_logger
from dino_x.training.micro_batch import remember, remembered
from dino_x.training.prepare import Prepared, files_hash, online, prepare, step_of
from dino_x.training.report import NoReport, TrainingReport
from dino_x.training.rescue import out_of_memory_named
from dino_x.version import __version__


def pretrain(overrides: Mapping[str, Any], out: Path, resume: bool, console: Console) -> RunFolder:
    """Train, or go on training, in the folder ``out``; evaluate if there are labels.

    Args:
        overrides: what the user set, as ``section.key`` values.
        out: the RUN folder.
        resume: go on from its newest checkpoint; a folder without a run is started anew.
        console: where to say what happens.

    Raises: UserError for everything the user can put right; what existed is kept.
    """
    where = process_info(os.environ)
    device = device_of(choose_device(str(overrides.get("train.device") or "auto")), where)
    run = RunFolder(out)
    if where.rank == 0:
        run.log.listen(console)
    try:
        with joined(where, device) as ranks:
            if ranks.rank > 0:
                console = Terminal(quiet=True)
            options = train_together(overrides, run, resume, device, ranks, console)
        if where.rank == 0:
            say_where(run, options, console)
            if options.data.labels:
                evaluate_run(options, run, console)
            if options.report.page:
                report_at_end(run.path, console)
    except UserError as error:
        run.log.hear(f"dino-x: {error}")
        raise
    except Exception:
        run.log.hear(traceback.format_exc())
        raise
    finally:
        run.log.close()
        run.lock.release()
    return run


def train_together(
    overrides: Mapping[str, Any],
    run: RunFolder,
    resume: bool,
    device: torch.device,
    ranks: Ranks,
    console: Console,
) -> Options:
    """What all processes of a run do, each with its share of the images; the resolved options."""
    resumed = resume and broadcast_from_rank0(ranks, lambda: is_there(run, console))
    named = "train.micro_batch" in overrides
    overrides = all_or_none(ranks, lambda: settings(overrides, run, resume))
    early = all_or_none(ranks, lambda: early_checks(overrides, ranks))
    asked, images = early.options.train.micro_batch, early.options.train.effective_batch
    if isinstance(asked, int):
        used = all_or_none(ranks, lambda: usable(images, asked, ranks.world_size, named))
        overrides = {**overrides, "train.micro_batch": used}
    index, held_out, labelled = broadcast_from_rank0(
        ranks, lambda: images_of(early, console, kept_split(run) if resumed else None)
    )
    resolved = all_or_none(
        ranks,
        lambda: resolve(overrides, Facts(len(index), inherited(overrides), early.patch_size)),
    )
    prepared = all_or_none(
        ranks, lambda: prepare(resolved, early.backbone, run, index, device, ranks, console)
    )
    options = prepared.trainer.options
    prepared.trainer.online = online(prepared, labelled)
    if ranks.world_size > 1:
        check_same(ranks, "images", {"their files": files_hash(index)})
    if ranks.world_size == 1:  # several would wait for the one that fills it longer than they can
        fill_cache(prepared, console)
    same = dotted(options.model_dump()) | {"the version of DINO-X": __version__}
    check_same(ranks, "settings", same)
    all_or_none(ranks, lambda: begin(prepared, labelled, resumed, resume, console))
    announce(prepared, held_out, console, asked)
    train(prepared, run, console)
    return options


def is_there(run: RunFolder, console: Console) -> bool:
    """Whether there is a run to resume; settings that are missing are made again, and said."""
    if restore_settings(run):
        console.print(
            f"{run.settings_file} was missing: it is made again from the newest checkpoint",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    return run.exists


def fill_cache(prepared: Prepared, console: Console) -> None:
    """Keep what lies in Parquet files in the cache on disk, if there is one, before it is used."""
    with progress_bar(console, "filling the cache") as on_progress:
        prepared.loader.fill(on_progress)


def begin(
    prepared: Prepared,
    labelled: Labelled | None,
    resumed: bool,
    resume: bool,
    console: Console,
) -> None:
    """Take up the run's newest checkpoint, or make its folder."""
    trainer, index = prepared.trainer, prepared.index
    if trainer.ranks.rank == 0:
        trainer.run.hold()
    if resumed and trainer.ranks.rank == 0:
        trainer.run.remove_leftovers()
    if resumed:
        trainer.resume(lambda line: console.print(line, style="yellow", soft_wrap=True))
        if trainer.ranks.rank == 0:
            check_same_content(trainer.run, keys_of_images(index.rows))
            trainer.run.lengthen(trainer.options, trainer.done)
    elif trainer.ranks.rank == 0:
        if resume:
            console.print(
                f"nothing to resume in {trainer.run.path}: starting a new run", highlight=False
            )
        device = describe_device(trainer.cutter.device)
        write_origin(trainer.run, trainer.options.model.name, trainer.student.backbone)
        facts = {"images": len(index), "device": device, "started_in": os.getcwd()}
        trainer.run.create(trainer.options, facts)
        keep_keys(trainer.run, keys_of_images(index.rows))
        keep_split(trainer.run, labelled.made if labelled is not None else {})
    if trainer.ranks.rank == 0:
        start = describe(describe_device(trainer.cutter.device), trainer.ranks.world_size)
        add_start(trainer.run.environment, start)
        remember(trainer.run, prepared.micro_batch, prepared.devices)
        list_skipped(index.skipped, trainer.run, console)


def settings(overrides: Mapping[str, Any], run: RunFolder, resume: bool) -> dict[str, Any]:
    """What the user set, on top of a resumed run's own settings.

    Raises: UserError if there is a run and no ``--resume``, or a resume changes a setting.
    """
    if not (resume and run.exists):
        run.refuse_if_taken()
        if not overrides.get("data.paths"):
            raise UserError("nothing to train on; name a folder of images with --data")
        return dict(overrides)
    saved = saved_settings(run, overrides)
    kept = remembered(run)
    if kept is not None:
        size, auto, _ = kept
        saved["train.micro_batch"] = "auto" if auto else size
    return {**saved, **overrides}


def train(prepared: Prepared, run: RunFolder, console: Console) -> None:
    """The loop, with its report; what turned out unreadable is added to skipped.csv."""
    trainer, options = prepared.trainer, prepared.trainer.options
    assert options.train.steps is not None
    skipped = prepared.loader.skipped
    step = step_of(trainer.steps, prepared.loader.form).at(prepared.micro_batch.size)
    memory = out_of_memory_named(trainer, step)
    if trainer.ranks.rank > 0:
        with prepared.loader, known_to_all(trainer.ranks, skipped), memory:
            trainer.train(NoReport())
        return
    logger = open_logger(options, run, lambda line: warn(line, console))
    report = TrainingReport(
        run, console, options.train.steps, trainer.done, options.head.prototypes, logger
    )
    of_all = skipped
    try:
        with report, prepared.loader, known_to_all(trainer.ranks, skipped) as of_all, memory:
            trainer.train(report)
    finally:
        left_out = [*prepared.index.skipped, *dict.fromkeys([*of_all, *skipped])]
        list_skipped(left_out, run, console)
        if number := trainer.state.recovery.skipped:
            console.print(
                f"skipped   {number} step{'s' * (number > 1)} whose loss or gradient was not finite"
                f" ('skipped' in {run.metrics})",
                style="yellow", highlight=False, soft_wrap=True,
            )  # fmt: skip


@contextmanager
def known_to_all(ranks: Ranks, skipped: list[Skipped]) -> Iterator[list[Skipped]]:
    """A list that holds what all processes skipped once the block has ended, in any agreed way."""
    of_all: list[Skipped] = []
    stopped: StoppedError | None = None
    try:
        yield of_all
    except StoppedError as error:
        stopped = error
    of_all += [skip for part in gather_objects(ranks, skipped) for skip in part]
    if stopped is not None:
        raise stopped


def list_skipped(skipped: list[Skipped], run: RunFolder, console: Console) -> None:
    """Write skipped.csv; where that fails, what was there stays, and training does not mind."""
    try:
        write_atomically(run.skipped, lambda file: write_skipped(skipped, file))
    except OSError as error:
        line = f"{run.skipped} cannot be written ({error.strerror})"
        console.print(line, style="yellow", highlight=False, soft_wrap=True)


def warn(line: str, console: Console) -> None:
    """Print a line that one should see."""
    console.print(line, style="yellow", highlight=False, soft_wrap=True)


def say_where(run: RunFolder, options: Options, console: Console) -> None:
    """Where the model is, and what gives its features."""
    data = shlex.join(address(path) for path in options.data.paths)
    out = f"--out {shlex.quote(run.path.name)}.parquet"
    lines = {
        "model": f"{run.model}, for transformers.AutoModel.from_pretrained",
        "features": f"dino-x embed --model {shlex.quote(str(run.path))} --data {data} {out}",
    }
    newest = newest_step(run)
    best = best_checkpoint(run, newest) if options.checkpoint.keep_best and newest else None
    if best is not None:
        step, figure = best
        lines["best"] = f"{run.path}@step-{step} (a --model): online evaluation {figure:.3f}"
    for name, line in lines.items():
        console.print(f"{name:<10}{line}", highlight=False, soft_wrap=True, markup=False)


def evaluate_run(options: Options, run: RunFolder, console: Console) -> None:
    """Write ``evaluation.json`` from the labels named in the options, and print its table."""
    assert options.data.labels is not None
    with progress_bar(console, "evaluating") as progress:
        result = evaluate(
            run.path,
            options.data.paths,
            options.data.labels,
            label_column=options.data.label_column,
            index=options.data.index,
            where=options.data.where,
            tasks=QUICK,
            device=options.train.device,
            seed=options.train.seed,
            progress=progress,
        )
    write_json(run.evaluation, result)
    print_table(result, console)
