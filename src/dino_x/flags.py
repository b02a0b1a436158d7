"""The commands of the command line and their flags."""

import argparse
from pathlib import Path
from typing import Any, NoReturn, get_args

from dino_x.config.other_names import hint
from dino_x.errors import UserError
from dino_x.version import __version__

FLAGS = {  # flag: (option, what it shows as its value)
    "--model": ("model.name", "NAME"),
    "--preset": ("preset", "auto|try|small|dinov3|continue|highres"),
    "--effective-batch": ("train.effective_batch", "N"),
    "--micro-batch": ("train.micro_batch", "N|auto"),
    "--steps": ("train.steps", "N"),
    "--prototypes": ("head.prototypes", "N"),
    "--centering": ("loss.centering", "auto|sinkhorn|softmax"),
    "--queue": ("loss.queue", "N"),
    "--koleo-group": ("loss.koleo_group", "effective|N"),
    "--seed": ("train.seed", "N"),
    "--device": ("train.device", "auto|cpu|cuda|mps"),
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
            known, flags = self.known_options(), {name: flag for flag, (name, _) in FLAGS.items()}
            message = f"unknown option '{word}'{hint(word.partition('=')[0], known, flags)}"
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
        add_embed,
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
    axes = DataOptions.model_fields["axes"]
    parser.add_argument("--axes", default=axes.default, help=axes.description)
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
    parser.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    parser.add_argument("--labels", metavar="folder|FILE.csv", help="What each image shows.")
    parser.add_argument("--label-column", default="label", metavar="NAME",
        help="Column that holds a class, several labels (mass|nodule) or a number; or columns of 0"
        " and 1, a label each, as NAME,NAME,...",
    )  # fmt: skip
    parser.add_argument(
        "--masks", metavar="FILE.csv|FOLDER",
        help="For segmentation: a table with a column 'mask', or a folder of masks that are named"
        " as their images. By default the column 'mask' of the labels.",
    )  # fmt: skip
    parser.add_argument("--index", metavar="FILE.parquet", help="An index of the data.")
    parser.add_argument(
        "--where", metavar="CONDITION", help="Evaluate on the images that meet it, as in pretrain."
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK",
        help="Tasks among knn, linear, few-shot and segmentation; by default all that labels and"
        " masks allow.",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="MODEL", help="Other models to compare with."
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="File for the result.")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of everything drawn, random weights included."
    )


def add_embed(commands: Any) -> None:
    """Add ``dino-x embed``."""
    parser = commands.add_parser("embed", help="Features of images, as a table.")
    parser.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    parser.add_argument("--data", nargs="+", required=True, metavar="PATH")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE.parquet", help="Table: .parquet or .csv."
    )
    parser.add_argument(
        "--patches", type=Path, metavar="FILE.npy",
        help="File for the features of all patches, in the order of the table.",
    )  # fmt: skip
    parser.add_argument("--index", metavar="FILE.parquet", help="An index of the data.")
    parser.add_argument(
        "--where", metavar="CONDITION", help="Embed the images that meet it, as in pretrain."
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N",
                        help="Number of images that go through the network together.")  # fmt: skip
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])


def add_floor(commands: Any) -> None:
    """Add ``dino-x batch-floor``."""
    parser = commands.add_parser("batch-floor", help="How large must the batch be, on your images?")
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
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def add_export(commands: Any) -> None:
    """Add ``dino-x export``."""
    parser = commands.add_parser(
        "export", help="Write a run's model for other tools, and check it."
    )
    parser.add_argument(
        "model", metavar="RUN", help="A run, or any model that a run can start from."
    )
    parser.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="Folder to make.")
    parser.add_argument("--format", required=True, choices=["transformers", "timm", "onnx"])
    parser.add_argument(
        "--which", choices=["teacher", "student"], default="teacher", help="Of the run's networks."
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="Of a checkpoint of the run; by default the last."
    )


def add_report(commands: Any) -> None:
    """Add ``dino-x report``."""
    parser = commands.add_parser("report", help="Write one HTML page about a run.")
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
    parser.add_argument("paths", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="A page with the curves.")


def add_demo(commands: Any) -> None:
    """Add ``dino-x demo``."""
    parser = commands.add_parser("demo", help="Pretrain and evaluate on the films in the package.")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="Folder to make; by default runs/demo, or demo-2, ...",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def add_options(commands: Any) -> None:
    """Add ``dino-x options``."""
    commands.add_parser("options", help="List every option of a run, its default and its meaning.")


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
