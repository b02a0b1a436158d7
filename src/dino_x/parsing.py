"""How the command line is read: flags of a run, help, and errors with the way out."""

import argparse
import contextlib
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from dino_x.config.other_names import hint
from dino_x.errors import UserError, nearest

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
    "--log": ("report.log", "wandb|mlflow|trackio"),
}


GROUPS = {  # of the flags in `FLAGS`, in the help
    "what to train": ("--model", "--preset"),
    "batch and length": ("--effective-batch", "--micro-batch", "--steps", "--seed"),
    "loss": ("--prototypes", "--centering", "--queue", "--koleo-group"),
    "images": ("--labels", "--cache", "--index", "--where"),
    "machine": ("--device", "--precision"),
    "records": ("--log",),
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

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the arguments; what is wrong with a command's is said by that command."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            of = self.commands().get(getattr(parsed, "command", None) or "", self)
            of.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def commands(self) -> dict[str, "Parser"]:
        """The commands of this parser by name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return dict(action.choices)
        return {}

    def hint(self, word: str) -> str:
        """A hint for a word that is no flag of this command, with flags that it has."""
        known = self.known_options()
        flag = word.partition("=")[0]
        places = [of.metavar for of in self._actions if not of.option_strings]
        if flag == "--data" and "PATH" in places:
            return "; folders and files are named without a flag here"
        if not word.startswith("-") and Path(word).exists() and "--data" in known:
            return f"; did you mean '--data {word}'?"
        flags = {name: flag for flag, (name, _) in FLAGS.items() if flag in known}
        found = hint(flag, known, flags)
        ours = re.search(r"did you mean '(--[\w-]+)", found)
        return found if ours is None or ours[1] in known else ""

    def known_options(self) -> list[str]:
        """Every flag of this parser and its commands."""
        known = [flag for action in self._actions for flag in action.option_strings]
        for command in self.commands().values():
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


def whole_number(text: str) -> int:
    """An argument that is a whole number from 0, of a size that every library takes.

    Raises: argparse.ArgumentTypeError.
    """
    with contextlib.suppress(ValueError):
        value = int(text)
        if 0 <= value < 2**63:
            return value
    raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^63 - 1, got {text[:40]}")


def number(text: str) -> float:
    """An argument that is a finite number. Raises: argparse.ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise argparse.ArgumentTypeError(f"expected a finite number, got {text[:40]}")
