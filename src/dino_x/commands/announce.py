"""What a run says before it starts."""

from collections.abc import Sequence

from rich.console import Console

from dino_x.commands.how_long import say_how_long
from dino_x.config.options import HeadOptions, Options
from dino_x.data.image import WITHOUT_IMAGE, ImageRef
from dino_x.data.index.index import GREY_SAMPLE
from dino_x.data.index.listed import LEFT_OUT, Index, in_words
from dino_x.data.index.passed_over import in_a_line, ways_out
from dino_x.data.index.rows import counts_of
from dino_x.distributed.shares import all_sizes
from dino_x.machine.device import describe_device
from dino_x.training.prepare import Prepared
from dino_x.training.schedules import peak_lr
from dino_x.training.step.batch_plan import Cutter
from dino_x.views.extra import place_of
from dino_x.views.sizes import crop_sizes


def announce(
    prepared: Prepared,
    held_out: int,
    console: Console,
    asked: int | str = "auto",
) -> None:
    """What is about to happen, in a few aligned lines; ``asked`` is the micro-batch asked for."""
    trainer, index = prepared.trainer, prepared.index
    options, backbone = trainer.options, trainer.student.backbone
    train, optim = options.train, options.optim
    assert isinstance(train.micro_batch, int)
    assert train.steps is not None
    parameters = sum(weight.numel() for weight in backbone.parameters()) / 1e6
    left = sum(not skip.reason.startswith((LEFT_OUT, WITHOUT_IMAGE)) for skip in index.skipped)
    skipped = f", {left} file{'s' * (left > 1)} skipped (see skipped.csv)" if left else ""
    held = f", {held_out:,} more held out to be tested on" if held_out else ""
    count = trainer.ranks.world_size
    processes = f" on each of {count} processes" if count > 1 else ""
    sizes = all_sizes(train.effective_batch, train.micro_batch, count)
    size = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{max(sizes)}"
    if asked not in ("auto", train.micro_batch):
        processes += f" ({asked} does not divide a process's images; the result is the same)"
    if prepared.micro_batch.why:
        processes += f" ({prepared.micro_batch.why})"
    steps_per_pass = len(index) / train.effective_batch
    lines = {
        "images": f"{len(index):,}{held}{skipped}",
        **not_taken(index),
        "model": f"{options.model.name}, {backbone.depth} layers x {backbone.width},"
        f" {parameters:.1f} M parameters; {prototypes_in_words(options.head)}",
        "settings": prepared.resolved.preset,
        "device": f"{describe_device(trainer.cutter.device)}, {train.precision}",
        "batch": f"{train.effective_batch} images a step, in micro-batches of {size}" + processes,
        "centering": prepared.resolved.policy.message,
        "steps": f"{train.steps:,} = {train.steps / steps_per_pass:.1f} passes over the images",
        "rate": f"{peak_lr(options):.3g} = {optim.lr:g} x sqrt({train.effective_batch} /"
        f" {optim.lr_batch}), after {optim.warmup} steps of warmup",
    }
    if trainer.sharded:
        lines["shard"] = f"networks and optimizer in {count} parts, one a process"
    if backbone.accounting is not None:
        heads = "the run's" if options.model.heads_from == "run" else "new"
        lines["weights"] = f"{backbone.accounting.line()}; heads: {heads}"
    if prepared.loader.store is not None:
        cached = len(prepared.loader.store)
        lines["cache"] = f"{options.data.cache}, {cached:,} of {len(index):,} images are in it"
    lines |= grey_lines(prepared)
    lines |= code_lines(trainer.cutter)
    lines |= stage_lines(options)
    if trainer.done:
        lines["resumed"] = f"after step {trainer.done:,}"
    for name, line in lines.items():
        partial = backbone.accounting is not None and not backbone.accounting.whole
        warn = {
            "centering": prepared.resolved.policy.warning,
            "weights": partial,
            "batch": prepared.micro_batch.warning,
        }
        warn["passed"] = bool(ways_out(index.passed))
        style = "yellow" if warn.get(name) else None
        console.print(f"{name:<10}{line}", style=style, highlight=False, soft_wrap=True)
    for note in index.notes:
        console.print(f"{'note':<10}{note}", style="yellow", highlight=False, soft_wrap=True)
    say_how_long(prepared, console)
    for sentence in warnings(index.rows, options):
        console.print(f"{'warning':<10}{sentence}", style="yellow", highlight=False, soft_wrap=True)


def warnings(rows: Sequence[ImageRef], options: Options) -> list[str]:
    """What a user would be surprised by later."""
    batch, found = options.train.effective_batch, []
    small = smaller_than_crops(rows, options)
    if small:
        found.append(small)
    if len(rows) < batch:
        found.append(
            f"fewer images ({len(rows)}) than an effective batch ({batch}): some appear several"
            " times in each step"
        )
    return found


def smaller_than_crops(rows: Sequence[ImageRef], options: Options) -> str:
    """A sentence if images are smaller than the crops that are taken of them, else nothing.

    Crops are then enlarged: they show no more than the images hold, and cost as if they did.
    """
    if options.data.spacing_mm is not None:
        return ""
    largest = max(sizes.global_size for sizes in crop_sizes(options))
    sizes = counts_of(rows, "height", "width")
    small = sum(count for size, count in sizes.items() if min(size) < largest)
    if small == 0:
        return ""
    return (
        f"{small:,} of {len(rows):,} images are smaller than the crops of {largest} px, so their"
        " crops are enlarged; a smaller views.global_size shows as much and is faster"
    )


def not_taken(index: Index) -> dict[str, str]:
    """Lines of what lies beside the images and is not trained on."""
    lines = {}
    if index.left_out:
        lines["left out"] = in_words(index.left_out)
    if index.without_image:
        lines["no image"] = f"{index.without_image:,} DICOM files, such as reports"
    if index.passed:
        lines["passed"] = "; ".join([in_a_line(index.passed), *ways_out(index.passed)])
    return lines


def grey_lines(prepared: Prepared) -> dict[str, str]:
    """Whether the images are taken for grey, from how many of them, and what that means."""
    if not prepared.trainer.grey:
        return {}
    looked_at = min(GREY_SAMPLE, len(prepared.index))
    return {
        "grey": f"no colours in {looked_at} images looked at: an image that has some becomes grey,"
        " in training and in evaluation alike"
    }


def code_lines(cutter: Cutter) -> dict[str, str]:
    """Which code of the user's own is run, and the file that it is in."""
    if cutter.extra is None:
        return {}
    name = cutter.options.views.extra
    return {"extra": f"{name} changes each crop ({place_of(cutter.extra)})"}


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


def prototypes_in_words(head: HeadOptions) -> str:
    """The number of prototypes of each head."""
    if head.ibot_prototypes in (None, head.prototypes):
        return f"{head.prototypes:,} prototypes a head"
    return f"{head.prototypes:,} prototypes for DINO, {head.ibot_prototypes:,} for iBOT"
