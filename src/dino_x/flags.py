"""The commands of the command line and their flags."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn, get_args

from dino_x.config.other_names import hint
from dino_x.errors import UserError, nearest
from dino_x.help_texts import START, example, sentence
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


GROUPS = {  # of the flags in `FLAGS`, in the help
    "what to train": ("--model", "--preset"),
    "batch and length": ("--effective-batch", "--micro-batch", "--steps", "--seed"),
    "loss": ("--prototypes", "--centering", "--queue", "--koleo-group"),
    "images": ("--labels", "--cache", "--index", "--where"),
    "machine": ("--device", "--precision"),
}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help whose examples keep their lines, with room for the longest command."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 26, **options})


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line with the way out."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and stop with status 2."""
        prefix = "unrecognized arguments: "
        choice = re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)$", message)
        if choice is not None:
            message = not_one_of(choice[1], choice[2], re.findall(r"[\w.-]+", choice[3]))
        elif message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            message = f"unknown option '{word}'{self.hint(word)}"
        raise UserError(f"{message}; see {self.prog} --help")

    def hint(self, word: str) -> str:
        """A hint for a word that is no flag of any command."""
        known, flags = self.known_options(), {name: flag for flag, (name, _) in FLAGS.items()}
        if not word.startswith("-") and Path(word).exists():
            return f"; did you mean '--data {word}'?"
        return hint(word.partition("=")[0], known, flags)

    def known_options(self) -> list[str]:
        """Every flag of this parser and its commands."""
        known: list[str] = []
        for action in self._actions:
            known += action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    known += command.known_options()
        return known


def not_one_of(what: str, word: str, known: list[str]) -> str:
    """A message for a word that is none of those that are known, with the nearest of them."""
    if what != "COMMAND":
        return f"{what} is one of {', '.join(known)}; got '{word}'{nearest(word, known)}"
    from dino_x.config.presets import known_options

    plain = word.strip("-").replace("-", "_")
    other = nearest(word, known)
    if not other and hint(plain, known_options()):
        other = f"; for an option of that name: dino-x options {word}"
    return f"there is no command '{word}'{other}"


def build_parser() -> Parser:
    """All commands and their flags."""
    parser = Parser(
        prog="dino-x",
        description="DINOv3-style pretraining on medical images, with an effective batch that is\n"
        "exact whatever the micro-batch.",
        epilog=START,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"dino-x {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        add_pretrain,
        add_plan,
        add_index,
        add_views,
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
    for command, its in commands.choices.items():
        its.description, its.epilog = sentence(command), example(command)
        its.formatter_class = Help
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
        "--json", type=Path, metavar="FILE.json", help="File for all numbers of the plan."
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
        parser.add_argument(
            f"--{flag.replace('_', '-')}",
            default=field.default,
            choices=words,
            metavar="|".join([*words[:3], "..."][: len(words)]),
            help=field.description,
        )
    axes = DataOptions.model_fields["axes"]
    parser.add_argument("--axes", default=axes.default, help=axes.description)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="Headers read at a time; by default the number of cores.",
    )


def add_views(commands: Any) -> None:
    """Add ``dino-x views``."""
    parser = commands.add_parser("views", help="What the network will see, as a picture.")
    add_run_options(parser)
    parser.add_argument("--out", type=Path, default=Path("views.png"), metavar="FILE.png",
                        help="The picture; by default views.png.")  # fmt: skip


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
        "--out", type=Path, metavar="FILE.html", help="The page; by default RUN/report.html."
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
    parser = commands.add_parser("options", help="Options of a run: values, presets, meaning.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD",
        help="Only options with these words: a section, a name, or a word of the meaning.",
    )  # fmt: skip


def add_run_options(parser: Parser) -> None:
    """What says how a run trains, for `pretrain` and `plan`."""
    from dino_x.config.presets import field_of

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
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            name, metavar = FLAGS[flag]
            meaning = field_of(name).description
            group.add_argument(flag, dest=name, metavar=metavar, help=meaning)
