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
    from dino_x.config.options import DataOptions

    parser = Parser(
        prog="dino-x",
        description="DINOv3-style pretraining on medical images, with an effective batch that is"
        " exact whatever the micro-batch.",
    )
    parser.add_argument("--version", action="version", version=f"dino-x {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    pretrain = commands.add_parser("pretrain", help="train a backbone on unlabelled images")
    pretrain.set_defaults(run=run_pretrain)
    add_run_options(pretrain)
    pretrain.add_argument("--out", required=True, type=Path, metavar="RUN", help="folder to make")
    pretrain.add_argument("--resume", action="store_true", help="go on with RUN")

    plan = commands.add_parser("plan", help="will it fit, how long will it take, what does it cost")
    plan.set_defaults(run=run_plan)
    add_run_options(plan)
    plan.add_argument(
        "--card", metavar="NAME", help="calculate for h100, a100-80, rtx4090, t4, ..."
    )
    plan.add_argument("--gpus", type=int, default=1, metavar="N", help="that share each step")
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="of the card's peak; 0 to 1")
    plan.add_argument("--price", type=float, metavar="PER_HOUR", help="of one GPU")
    plan.add_argument("--images", type=int, metavar="N", help="how many, without --data")
    plan.add_argument("--no-measure", action="store_true", help="no trial on this machine")
    plan.add_argument("--json", type=Path, metavar="FILE.json", help="all figures")

    index = commands.add_parser("index", help="what images there are: a table and a summary")
    index.set_defaults(run=run_index)
    index.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="as of pretrain --data")
    index.add_argument("--out", required=True, type=Path, metavar="FILE.parquet",
                       help="the table; continued where it is there")  # fmt: skip
    index.add_argument("--labels", metavar="folder|FILE.csv", help="to have classes in the table")
    index.add_argument("--label-column", default="label", metavar="NAME")
    for flag in ("slice_axis", "modality"):
        field = DataOptions.model_fields[flag]
        words = get_args(field.annotation)
        index.add_argument(f"--{flag.replace('_', '-')}", default=field.default, choices=words,
                           help=field.description)  # fmt: skip
    index.add_argument("--workers", type=int, metavar="N", help="default: the number of cores")

    evaluate = commands.add_parser("evaluate", help="is a model any good? with baselines")
    evaluate.set_defaults(run=run_evaluate)
    evaluate.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    evaluate.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    evaluate.add_argument("--labels", metavar="folder|FILE.csv", help="the class of each image")
    evaluate.add_argument("--label-column", default="label", metavar="NAME")
    evaluate.add_argument(
        "--masks", metavar="FILE.csv|FOLDER",
        help="for segmentation: a table with a column 'mask', or masks called as their images are;"
        " default: the labels' own column 'mask'",
    )  # fmt: skip
    evaluate.add_argument(
        "--tasks", nargs="+", metavar="TASK",
        help="of knn, linear, few-shot and segmentation; default: all that labels and masks allow",
    )  # fmt: skip
    evaluate.add_argument(
        "--against", nargs="+", default=[], metavar="MODEL", help="other models to compare with"
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the result")
    evaluate.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    evaluate.add_argument(
        "--seed", type=int, default=0, help="of everything drawn, random weights too"
    )

    floor = commands.add_parser("batch-floor", help="how large the batch must be, on your images")
    floor.set_defaults(run=run_batch_floor)
    floor.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    floor.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    floor.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    floor.add_argument("--labels", metavar="folder|FILE.csv", help="to look at a class apart")
    floor.add_argument("--label-column", default="label", metavar="NAME")
    floor.add_argument("--rare-class", metavar="NAME", help="default: the smallest class")
    floor.add_argument(
        "--repeats", type=int, metavar="N", help="draws; default 10, fewer above 1,024 prototypes"
    )
    floor.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    floor.add_argument("--seed", type=int, default=0, metavar="N")

    export = commands.add_parser("export", help="a run's model for other tools, checked")
    export.set_defaults(run=run_export)
    export.add_argument("model", metavar="RUN", help="a run, or a model that one can start from")
    export.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="folder to make")
    export.add_argument("--format", required=True, choices=["transformers", "timm", "onnx"])

    report = commands.add_parser("report", help="one HTML page about a run")
    report.set_defaults(run=run_report)
    report.add_argument("path", type=Path, metavar="RUN")
    report.add_argument("--out", type=Path, metavar="FILE.html", help="default: RUN/report.html")
    report.add_argument(
        "--no-images", action="store_true", help="leave your images out, where text is burnt in"
    )

    compare = commands.add_parser("compare", help="runs side by side")
    compare.set_defaults(run=run_compare)
    compare.add_argument("paths", nargs="+", type=Path, metavar="RUN")
    compare.add_argument("--out", type=Path, metavar="FILE.html", help="a page, with the curves")

    demo = commands.add_parser("demo", help="pretrain and evaluate on the films in the package")
    demo.set_defaults(run=run_demo)
    demo.add_argument("--out", type=Path, metavar="RUN", help="default: runs/demo, or demo-2, ...")
    demo.add_argument("--seed", type=int, default=0, metavar="N")

    options = commands.add_parser("options", help="every option of a run, its default and meaning")
    options.set_defaults(run=run_options)
    return parser


def add_run_options(parser: Parser) -> None:
    """What says how a run trains, for `pretrain` and `plan`."""
    from dino_x.config.options import Options

    parser.add_argument(
        "--data", nargs="+", metavar="PATH",
        help="folders, files, tar or Parquet shards or addresses of these, an index",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="options in a file")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="section.key=value",
        help="any option; see `dino-x options`",
    )  # fmt: skip
    parser.add_argument(
        "--allow-partial", action="store_const", const=True, dest="model.allow_partial",
        help="start from weights of which less than 99%% can be loaded",
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
