"""The command line: one function a command, no logic."""

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from dino_x.errors import SaidElsewhereError, StoppedError, UserError, nearest
from dino_x.version import __version__

FLAGS = {  # flag: (option, what it shows as its value)
    "--model": ("model.name", "NAME"),
    "--preset": ("preset", "auto|small|dinov3|continue|highres"),
    "--effective-batch": ("train.effective_batch", "N"),
    "--micro-batch": ("train.micro_batch", "N|auto"),
    "--steps": ("train.steps", "N"),
    "--prototypes": ("head.prototypes", "N"),
    "--centering": ("loss.centering", "auto|sinkhorn|softmax"),
    "--queue": ("loss.queue", "N"),
    "--koleo-group": ("loss.koleo_group", "effective|N"),
    "--seed": ("train.seed", "N"),
    "--device": ("train.device", "auto|cpu|cuda"),
    "--precision": ("train.precision", "fp32|bf16|fp64"),
    "--labels": ("data.labels", "folder|FILE.csv"),
    "--cache": ("data.cache", "DIR"),
    "--index": ("data.index", "FILE.parquet"),
    "--where": ("data.where", "CONDITION"),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the way out."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop with status 2."""
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            message = f"unknown option '{word}'{nearest(word, self.known_options())}"
        raise UserError(f"{message}; see {self.prog} --help")

    def known_options(self) -> list[str]:
        """Every flag of this parser and its commands."""
        known: list[str] = []
        for action in self._actions:
            known += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    known += command.known_options()
        return known


def build_parser() -> Parser:
    """All commands and their flags."""
    parser = Parser(
        prog="dino-x",
        description="DINOv3-style pretraining on medical images, with an effective batch that is"
        " exact whatever the micro-batch.",
    )
    parser.add_argument("--version", action="version", version=f"dino-x {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        add_pretrain,
        add_plan,
        add_index,
        add_evaluate,
        add_floor,
        add_export,
        add_report,
        add_compare,
        add_demo,
        add_options,
    ):
        add(commands)
    return parser


def add_pretrain(commands: Any) -> None:
    """Add ``dino-x pretrain``."""
    parser = commands.add_parser("pretrain", help="Train a backbone on unlabelled images.")
    parser.set_defaults(run=run_pretrain)
    add_run_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="Folder to make.")
    parser.add_argument(
        "--resume", action="store_true", help="Continue RUN from its newest checkpoint."
    )


def add_plan(commands: Any) -> None:
    """Add ``dino-x plan``."""
    parser = commands.add_parser(
        "plan", help="Will it fit, how long will it take, what does it cost?"
    )
    parser.set_defaults(run=run_plan)
    add_run_options(parser)
    parser.add_argument(
        "--card", metavar="NAME", help="GPU to calculate for: h100, a100-80, rtx4090, t4, ..."
    )
    parser.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="Number of GPUs that share each step."
    )
    parser.add_argument(
        "--mfu",
        type=float,
        metavar="SHARE",
        help="Share of the GPU's peak that is reached, 0 to 1.",
    )
    parser.add_argument("--price", type=float, metavar="PER_HOUR", help="Price of one GPU.")
    parser.add_argument("--images", type=int, metavar="N", help="Number of images, without --data.")
    parser.add_argument(
        "--no-measure", action="store_true", help="Do not try a step on this machine."
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE.json", help="File for all numbers of the parser."
    )


def add_index(commands: Any) -> None:
    """Add ``dino-x index``."""
    from dino_x.config.options import DataOptions

    parser = commands.add_parser("index", help="What images there are: a table and a summary.")
    parser.set_defaults(run=run_index)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="Folders, files and archives, as for pretrain --data.",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.parquet",
                       help="The table; if it is there, it is brought up to date.")  # fmt: skip
    parser.add_argument(
        "--labels", metavar="folder|FILE.csv", help="Labels, to have classes in the table."
    )
    parser.add_argument("--label-column", default="label", metavar="NAME")
    for flag in ("slice_axis", "modality"):
        field = DataOptions.model_fields[flag]
        words = get_args(field.annotation)
        parser.add_argument(f"--{flag.replace('_', '-')}", default=field.default, choices=words,
                           help=field.description)  # fmt: skip
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="Headers read at a time; by default the number of cores.",
    )


def add_evaluate(commands: Any) -> None:
    """Add ``dino-x evaluate``."""
    parser = commands.add_parser(
        "evaluate", help="Is a model any good? Several tasks, beside baselines."
    )
    parser.set_defaults(run=run_evaluate)
    parser.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    parser.add_argument("--labels", metavar="folder|FILE.csv", help="The class of each image.")
    parser.add_argument("--label-column", default="label", metavar="NAME")
    parser.add_argument(
        "--masks", metavar="FILE.csv|FOLDER",
        help="For segmentation: a table with a column 'mask', or a folder of masks that are named"
        " as their images. By default the column 'mask' of the labels.",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK",
        help="Tasks among knn, linear, few-shot and segmentation; by default all that labels and"
        " masks allow.",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="MODEL", help="Other models to compare with."
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="File for the result.")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of everything drawn, random weights included."
    )


def add_floor(commands: Any) -> None:
    """Add ``dino-x batch-floor``."""
    parser = commands.add_parser("batch-floor", help="How large must the batch be, on your images?")
    parser.set_defaults(run=run_batch_floor)
    parser.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--labels", metavar="folder|FILE.csv", help="Labels, to look at a class by itself."
    )
    parser.add_argument("--label-column", default="label", metavar="NAME")
    parser.add_argument(
        "--rare-class", metavar="NAME", help="The rare class; by default the smallest."
    )
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="Number of draws; by default 10, fewer above 1,024 prototypes.",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def add_export(commands: Any) -> None:
    """Add ``dino-x export``."""
    parser = commands.add_parser(
        "export", help="Write a run's model for other tools, and check it."
    )
    parser.set_defaults(run=run_export)
    parser.add_argument(
        "model", metavar="RUN", help="A run, or any model that a run can start from."
    )
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="Folder to make.")
    parser.add_argument("--format", required=True, choices=["transformers", "timm", "onnx"])


def add_report(commands: Any) -> None:
    """Add ``dino-x report``."""
    parser = commands.add_parser("report", help="Write one HTML page about a run.")
    parser.set_defaults(run=run_report)
    parser.add_argument("path", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="The page; by default RUN/parser.html."
    )
    parser.add_argument(
        "--no-images",
        action="store_true",
        help="Leave images out, for example if text is burnt into them.",
    )


def add_compare(commands: Any) -> None:
    """Add ``dino-x compare``."""
    parser = commands.add_parser("compare", help="Show runs side by side.")
    parser.set_defaults(run=run_compare)
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="A page with the curves.")


def add_demo(commands: Any) -> None:
    """Add ``dino-x demo``."""
    parser = commands.add_parser("demo", help="Pretrain and evaluate on the films in the package.")
    parser.set_defaults(run=run_demo)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="Folder to make; by default runs/demo, or demo-2, ...",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def add_options(commands: Any) -> None:
    """Add ``dino-x options``."""
    parser = commands.add_parser(
        "options", help="List every option of a run, its default and its meaning."
    )
    parser.set_defaults(run=run_options)


def add_run_options(parser: Parser) -> None:
    """What says how a run trains, for `pretrain` and `plan`."""
    from dino_x.config.options import Options

    parser.add_argument(
        "--data", nargs="+", metavar="PATH",
        help="Folders, files, tar or Parquet archives, their addresses, or an index.",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="File of options.")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="section.key=value",
        help="Any option; see `dino-x options`.",
    )  # fmt: skip
    parser.add_argument(
        "--allow-partial", action="store_const", const=True, dest="model.allow_partial",
        help="Start from weights of which less than 99%% can be loaded.",
    )  # fmt: skip
    for flag, (name, metavar) in FLAGS.items():
        *sections, key = name.split(".")
        owner: Any = Options
        for section in sections:
            owner = owner.model_fields[section].annotation
        parser.add_argument(
            flag, dest=name, metavar=metavar, help=owner.model_fields[key].description
        )


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
    from rich.console import Console

    from dino_x.commands.pretrain import pretrain

    pretrain(overrides_in(arguments), arguments.out, arguments.resume, Console())


def run_plan(arguments: argparse.Namespace) -> None:
    """``dino-x plan``."""
    from rich.console import Console

    from dino_x.cost.cards import card_of
    from dino_x.planning.plan import Request, check_place, plan, save
    from dino_x.planning.table import print_plan

    request = Request(
        card=card_of(arguments.card) if arguments.card else None,
        gpus=arguments.gpus,
        mfu=arguments.mfu,
        price=arguments.price,
        measure=not arguments.no_measure,
        images=arguments.images,
    )
    check_place(arguments.json)
    console = Console()
    result = plan(overrides_in(arguments), request, console)
    print_plan(result, console)
    save(result, arguments.json)


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
        workers=arguments.workers,
        verbose=True,
    )


def run_evaluate(arguments: argparse.Namespace) -> None:
    """``dino-x evaluate``."""
    from dino_x import api
    from dino_x.files import write_json

    result = api.evaluate(
        arguments.model,
        arguments.data,
        arguments.labels,
        label_column=arguments.label_column,
        masks=arguments.masks,
        tasks=arguments.tasks,
        against=arguments.against,
        device=arguments.device,
        seed=arguments.seed,
        verbose=True,
    )
    path = arguments.out or Path("evaluation.json")
    write_json(path, result)
    print(f"written to {path}")


def run_batch_floor(arguments: argparse.Namespace) -> None:
    """``dino-x batch-floor``."""
    from rich.console import Console

    from dino_x.audit.batch_floor import batch_floor

    batch_floor(
        arguments.model,
        arguments.data,
        arguments.out,
        Console(),
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

    api.export(arguments.model, arguments.to, arguments.format, verbose=True)


def run_report(arguments: argparse.Namespace) -> None:
    """``dino-x report``."""
    from dino_x import api

    page = api.Run(arguments.path).report(arguments.out, images=not arguments.no_images)
    print(f"written to {page}")


def run_compare(arguments: argparse.Namespace) -> None:
    """``dino-x compare``."""
    from rich.console import Console

    from dino_x.report.compare import compare, compare_page
    from dino_x.report.terminal import print_comparison

    print_comparison(compare(arguments.paths), Console())
    if arguments.out:
        compare_page(arguments.paths, arguments.out)
        print(f"written to {arguments.out}")


def run_demo(arguments: argparse.Namespace) -> None:
    """``dino-x demo``."""
    from rich.console import Console

    from dino_x.commands.demo import run_demo as demo

    demo(arguments.out, arguments.seed, Console())


def run_options(arguments: argparse.Namespace) -> None:
    """``dino-x options``."""
    from dino_x.config.presets import options_text

    print(options_text())


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it did what it was asked, 2 with one line on stderr if it could not.

    128 and a signal's number if that asked a run to stop.
    """
    prepare_libraries()
    try:
        parser = build_parser()
        parsed = parser.parse_args(arguments)
        if parsed.command is None:
            parser.print_help()
            return 0
        parsed.run(parsed)
    except SaidElsewhereError:
        return 2
    except StoppedError as stopped:
        if stopped.says:
            print(f"dino-x: {stopped}", file=sys.stderr)
        return stopped.status
    except UserError as error:
        print(f"dino-x: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"dino-x: {where}{error.strerror}; make room and try again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "dino-x: stopped; a run goes on with --resume, an index with the same command",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
