"""The command line: from arguments to commands, no logic."""

import argparse
import errno
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from dino_x.errors import SaidElsewhereError, StoppedError, UserError
from dino_x.flags import build_parser
from dino_x.parsing import FLAGS
from dino_x.terminal import Terminal, lasting_output, visible


def overrides_in(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user set with the options of a run."""
    from dino_x.config.presets import collect_overrides

    names = [name for name, _ in FLAGS.values()] + ["model.allow_partial"]
    flags = {name: getattr(arguments, name) for name in names}
    return collect_overrides(
        arguments.config, arguments.set, {"data.paths": arguments.data, **flags}
    )


def run_pretrain(arguments: argparse.Namespace) -> None:
    """``dino-x pretrain``."""
    from dino_x.commands.pretrain import pretrain

    pretrain(overrides_in(arguments), arguments.out, arguments.resume, Terminal())


def run_plan(arguments: argparse.Namespace) -> None:
    """``dino-x plan``."""
    from dino_x.cost.gpus import gpu_of
    from dino_x.planning.plan import Request, check_place, plan, save
    from dino_x.planning.table import print_plan

    request = Request(
        gpu=gpu_of(arguments.card) if arguments.card else None,
        gpus=arguments.gpus,
        mfu=arguments.mfu,
        price=arguments.price,
        measure=not arguments.no_measure,
        images=arguments.images,
    )
    check_place(arguments.json)
    console = Terminal()
    result = plan(overrides_in(arguments), request, console)
    save(result, arguments.json)
    print_plan(result, console)


def run_index(arguments: argparse.Namespace) -> None:
    """``dino-x index``."""
    from dino_x import api

    api.index(
        arguments.paths,
        arguments.out,
        labels=arguments.labels,
        label_column=arguments.label_column,
        slice_axis=arguments.slice_axis,
        modality=arguments.modality,
        axes=arguments.axes,
        workers=arguments.workers,
        verbose=True,
    )


def run_views(arguments: argparse.Namespace) -> None:
    """``dino-x views``."""
    from dino_x.commands.views import draw_views

    draw_views(overrides_in(arguments), arguments.out, Terminal())


def run_evaluate(arguments: argparse.Namespace) -> None:
    """``dino-x evaluate``."""
    from dino_x import api
    from dino_x.files import check_place
    from dino_x.report.write import report_again
    from dino_x.runs.evaluations import place_of
    from dino_x.runs.lock import RunLock

    path = arguments.out or place_of(arguments.model)
    check_place(path)
    RunLock(path.parent).refuse_if_held()
    api.evaluate(
        arguments.model,
        arguments.data,
        arguments.labels,
        label_column=arguments.label_column,
        masks=arguments.masks,
        index=arguments.index,
        where=arguments.where,
        tasks=arguments.tasks,
        against=arguments.against,
        features=arguments.features,
        device=arguments.device,
        seed=arguments.seed,
        verbose=True,
        written_to=path,
    )
    report_again(path, Terminal())


def run_embed(arguments: argparse.Namespace) -> None:
    """``dino-x embed``."""
    from dino_x import api
    from dino_x.commands.feature_table import Place

    Place(arguments.out, arguments.patches).check()
    api.load(arguments.model, device=arguments.device).embed_to(
        arguments.out,
        arguments.data,
        patches=arguments.patches,
        index=arguments.index,
        where=arguments.where,
        batch_size=arguments.batch_size,
        verbose=True,
    )


def run_batch_floor(arguments: argparse.Namespace) -> None:
    """``dino-x batch-floor``."""
    from dino_x.audit.batch_floor import batch_floor

    batch_floor(
        arguments.model,
        arguments.data,
        arguments.out,
        Terminal(),
        labels=arguments.labels,
        label_column=arguments.label_column,
        rare_class=arguments.rare_class,
        repeats=arguments.repeats,
        device=arguments.device,
        seed=arguments.seed,
    )


def run_export(arguments: argparse.Namespace) -> None:
    """``dino-x export``."""
    from dino_x import api

    api.export(
        arguments.model,
        arguments.to,
        arguments.format,
        which=arguments.which,
        step=arguments.step,
        push=arguments.push,
        public=arguments.public,
        verbose=True,
    )


def run_report(arguments: argparse.Namespace) -> None:
    """``dino-x report``."""
    from dino_x import api

    if arguments.watch is not None:
        from dino_x.report.watch import watch

        images = not arguments.no_images
        watch(arguments.path, arguments.out, Terminal(), images=images, every=arguments.watch)
        return
    page = api.Run(arguments.path).report(arguments.out, images=not arguments.no_images)
    print(visible(f"written to {page}"))


def run_compare(arguments: argparse.Namespace) -> None:
    """``dino-x compare``."""
    from dino_x.report.compare import compare, compare_page
    from dino_x.report.terminal import print_comparison

    print_comparison(compare(arguments.paths), Terminal())
    if arguments.out:
        compare_page(arguments.paths, arguments.out)
        print(visible(f"written to {arguments.out}"))


def run_demo(arguments: argparse.Namespace) -> None:
    """``dino-x demo``."""
    from dino_x.commands.demo import run_demo as demo

    demo(arguments.out, arguments.seed, Terminal())


def run_options(arguments: argparse.Namespace) -> None:
    """``dino-x options``."""
    from dino_x.config.options_text import options_text

    print(options_text(arguments.words, shutil.get_terminal_size().columns))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "pretrain": run_pretrain,
    "plan": run_plan,
    "index": run_index,
    "views": run_views,
    "evaluate": run_evaluate,
    "embed": run_embed,
    "batch-floor": run_batch_floor,
    "export": run_export,
    "report": run_report,
    "compare": run_compare,
    "demo": run_demo,
    "options": run_options,
}


def prepare_libraries() -> None:
    """What libraries read from the environment, before torch is imported."""
    # OpenMP's threads spin while they wait. On a busy machine they then take the time from each
    # other: measured on two cores beside other work, 6 images/s, and 36 with a short spin (on an
    # idle machine 215 and 200).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # What libraries print of themselves tells our users nothing.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module="torch|transformers|tensorboard|pydicom")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def say(text: str) -> None:
    """A line about what went wrong."""
    print(visible(f"dino-x: {text}"), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it was asked, 2 with one line on stderr if it could not.

    128 and a signal's number if that asked a run to stop.
    """
    prepare_libraries()
    with lasting_output() as output:
        status = run(arguments)
    if output.lost and status == 0:
        say(f"what it printed could not be written ({output.lost}); what it made is whole")
        return 2
    return status


def run(arguments: Sequence[str] | None) -> int:
    """Run a command, and say in one line what the user can put right; the exit status."""
    try:
        if any("\0" in argument for argument in arguments or ()):
            raise UserError("an argument holds a zero byte, which no name and no number has")
        parser = build_parser()
        parsed = parser.parse_args(arguments)
        if parsed.command is None:
            parser.print_help()
            return 0
        COMMANDS[parsed.command](parsed)
    except SaidElsewhereError:
        return 2
    except StoppedError as stopped:
        if stopped.says:
            say(str(stopped))
        return stopped.status
    except UserError as error:
        say(str(error))
        return 2
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if not (full or (error.filename and error.strerror)):
            raise
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{error.strerror}{'; make room and try again' * full}")
        return 2
    except KeyboardInterrupt:
        say("stopped; a run continues with --resume, an index or features with the same command")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
