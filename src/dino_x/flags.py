"""The commands of the command line and their flags."""

from pathlib import Path
from typing import Any, get_args

from dino_x.help_texts import START, example, sentence
from dino_x.parsing import FLAGS, GROUPS, Help, Parser, number, whole_number
from dino_x.version import __version__


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
        "--gpus",
        type=whole_number,
        default=1,
        metavar="N",
        help="Number of GPUs that share each step.",
    )
    parser.add_argument(
        "--mfu",
        type=number,
        metavar="SHARE",
        help="Share of the GPU's peak that is reached, 0 to 1.",
    )
    parser.add_argument("--price", type=number, metavar="PER_HOUR", help="Price of one GPU.")
    parser.add_argument(
        "--images", type=whole_number, metavar="N", help="Number of images, without --data."
    )
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
        "--labels", metavar="folder|column|FILE.csv", help="Labels, to have classes in the table."
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
        type=whole_number,
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
    parser.add_argument("--labels", metavar="folder|column|FILE.csv", help="What each image shows.")
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
    parser.add_argument(
        "--features", default="cls", choices=["cls", "cls+mean"],
        help="What a network says of an image: its CLS token, or CLS and the mean patch, of all"
        " networks alike.",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="File for the result; by default evaluation.json in the run, whose page is made anew.",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        help="Seed of everything drawn, random weights included.",
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
    parser.add_argument("--batch-size", type=whole_number, default=64, metavar="N",
                        help="Number of images that go through the network together.")  # fmt: skip
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])


def add_floor(commands: Any) -> None:
    """Add ``dino-x batch-floor``."""
    parser = commands.add_parser("batch-floor", help="How large must the batch be, on your images?")
    parser.add_argument("--model", required=True, metavar="RUN_OR_FOLDER")
    parser.add_argument("--data", nargs="+", required=True, type=Path, metavar="PATH")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--labels", metavar="folder|column|FILE.csv", help="Labels, to look at a class by itself."
    )
    parser.add_argument("--label-column", default="label", metavar="NAME")
    parser.add_argument(
        "--rare-class", metavar="NAME", help="The rare class; by default the smallest."
    )
    parser.add_argument(
        "--repeats",
        type=whole_number,
        metavar="N",
        help="Number of draws; by default 10, fewer above 1,024 prototypes.",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N")


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
        "--step",
        type=whole_number,
        metavar="N",
        help="Of a checkpoint of the run; by default the last.",
    )
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="Upload the folder to the Hugging Face hub, privately; nothing leaves without this.",
    )
    parser.add_argument("--public", action="store_true", help="Let everyone read what is pushed.")


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
    parser.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=60,
        metavar="SECONDS",
        help="Write the page again every 60 (or so many) seconds until the run ends; an open page"
        " loads itself anew.",
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
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N")


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
