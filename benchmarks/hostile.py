"""Does any hostile command end in a traceback, hang, or fill the memory?

    python benchmarks/hostile.py [--commands 400] [--seed 0] [--show]

Makes a small run, an index, an evaluation and weights; damages their files in many ways (cut off,
emptied, bits flipped, other text, other JSON, numbers that cannot be, a folder in their place,
gone); makes archives that were built to hang or to swell a reader; and gives commands names,
numbers and paths that nobody means. Each command runs in a fork of this process under watch. It
must end with status 0 or 2, with one line if it is 2, within 10 s of the processor's time and 1 GB.
Exit status 1 if one does not. Linux only.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dino_x.cli import main as dino_x
from tests.conftest import make_films, tiny_settings
from tests.data.storage.test_hostile_archives import TARS

SECONDS, BYTES = 10.0, 2**30
ALARM = 120  # seconds by the clock, after which a command hangs
RUN_FILES = (
    "config.yaml", "facts.json", "origin.json", "metrics.jsonl", "health.jsonl", "evaluation.json",
    "micro_batch.json", "trained_on.keys", "split.csv", "skipped.csv", "lock",
    "checkpoints/step-00000002.pt", "checkpoints/step-00000002.sha256", "model/config.json",
    "model/preprocessor_config.json", "model/model.safetensors",
)  # fmt: skip
OF_A_RUN = ("resume", "report", "export", "compare", "evaluate", "continue", "batch-floor")


@dataclass(frozen=True)
class Outcome:
    """What became of a command.

    Attributes:
        status: of its exit; negative for a signal.
        seconds: of the processor's time.
        growth: bytes by which its memory grew at most.
        error: what it wrote to standard error.
    """

    status: int
    seconds: float
    growth: int
    error: str

    @property
    def fault(self) -> str:
        """What is wrong with it, or nothing."""
        if "Traceback" in self.error:
            return "traceback: " + self.error.strip().splitlines()[-1][:120]
        if self.status < 0:
            return f"ended by signal {-self.status}"
        if self.status not in (0, 2):
            return f"status {self.status}"
        lines = [line for line in self.error.splitlines() if line.startswith("dino-x: ")]
        if self.status == 2 and len(lines) != 1:
            return f"status 2 with {len(lines)} lines"
        if self.seconds > SECONDS:
            return f"{self.seconds:.0f} s"
        return f"{self.growth / 2**20:.0f} MB" if self.growth > BYTES else ""


def watched(arguments: list[str], folder: Path) -> Outcome:
    """Run a command in a fork."""
    errors = folder / "stderr"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(ALARM)
            nowhere = os.open(os.devnull, os.O_RDWR)
            written = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for here, there in ((nowhere, 0), (nowhere, 1), (written, 2)):
                os.dup2(here, there)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                status = dino_x(arguments)
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            (folder / "growth").write_text(str(grown * 1024))
        finally:
            os._exit(status)
    _, waited, usage = os.wait4(child, 0)
    growth = 0
    with contextlib.suppress(OSError, ValueError):
        growth = int((folder / "growth").read_text())
    (folder / "growth").unlink(missing_ok=True)
    seconds = usage.ru_utime + usage.ru_stime
    if not all(stat.S_ISCHR(os.stat(device).st_mode) for device in ("/dev/null", "/dev/full")):
        raise SystemExit(f"{arguments} has replaced a device by a file")
    text = errors.read_text(errors="replace") if errors.exists() else ""
    return Outcome(os.waitstatus_to_exitcode(waited), seconds, growth, text)


@dataclass(frozen=True)
class Place:
    """What commands are tried on.

    Attributes:
        films: a folder of images, in folders by class.
        run: a finished run, of which each command gets a copy.
        index: an index of the images.
        weights: a file of tensors, as released.
        scratch: where each command works.
    """

    films: Path
    run: Path
    index: Path
    weights: Path
    scratch: Path


def prepare(folder: Path) -> Place:
    """Make them."""
    films = make_films(folder / "films")
    run, index = folder / "run", folder / "i.parquet"
    train = ["pretrain", "--data", str(films), *QUICK, "--steps", "2", "--labels", "folder"]
    assert dino_x([*train, "--out", str(run)]) == 0
    assert dino_x(["index", str(films), "--out", str(index)]) == 0
    weights = folder / "w.pth"
    torch.save({"a": torch.zeros(3)}, weights)
    (folder / "scratch").mkdir()
    return Place(films, run, index, weights, folder / "scratch")


QUICK = [
    "--effective-batch", "4", "--micro-batch", "4",
    *tiny_settings(views__local_crops=0, report__page=False, online__every=0),
]  # fmt: skip


def damages(draw: random.Random) -> dict[str, Callable[[Path], None]]:
    """Ways to damage a file, by name."""

    def rewrite(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        def way(path: Path) -> None:
            path.write_bytes(change(path.read_bytes()))

        return way

    def flipped(data: bytes) -> bytes:
        found = bytearray(data)
        for _ in range(min(len(found), 1 + len(found) // 200)):
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        return bytes(found)

    def folder_instead(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def link_to_itself(path: Path) -> None:
        path.unlink()
        path.symlink_to(path)

    def other_json(path: Path) -> None:
        """Each value of a JSON or YAML file becomes one of another kind."""
        text = path.read_text(errors="replace")
        try:
            value = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        except (ValueError, IndexError):
            path.write_text("a: [1, {b: 2}]\n")
            return
        path.write_text(json.dumps(_other(value, draw)) + "\n")

    texts = {
        "another list": "[1, 2]", "a number": "17", "null": "null", "a text": '"text"',
        "words": "no",
        "deep": "[" * 100_000, "deep objects": '{"a":' * 20_000, "a large number": "1e99999",
        "many digits": "9" * 10_000, "escapes": '"\\ud800\x1b[31m"', "an object": "{}",
        "yaml tag": "!!python/object/apply:os.system ['true']", "a key of null": "{null: 1}",
    }  # fmt: skip
    ways: dict[str, Callable[[Path], None]] = {
        "empty": rewrite(lambda data: b""),
        "cut off": rewrite(lambda data: data[: len(data) // 2]),
        "cut off by one": rewrite(lambda data: data[:-1]),
        "bits flipped": rewrite(flipped),
        "zeros": rewrite(lambda data: bytes(len(data))),
        "random bytes": rewrite(lambda data: draw.randbytes(max(64, len(data) // 2))),
        "not UTF-8": rewrite(lambda data: b"\xff\xfe" + data),
        "twice": rewrite(lambda data: data + data),
        "gone": lambda path: path.unlink(),
        "a folder": folder_instead,
        "a link to itself": link_to_itself,
        "other values": other_json,
    }
    for name, text in texts.items():
        ways[name] = lambda path, text=text: path.write_text(text) and None  # type: ignore[misc]
    return ways


def _other(value: object, draw: random.Random) -> object:
    if isinstance(value, dict):
        return {key: _other(inner, draw) for key, inner in value.items()}
    kinds: list[Any] = [None, -1, 10**30, 0.5, True, "text", "\x1b[31m", "../../x"]
    kinds += [[], {}, [[]], [None]]
    return draw.choice(kinds) if draw.random() < 0.5 else value


def of_files(place: Place, draw: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Commands on damaged files of a run, without end; each on a copy."""
    ways = damages(draw)
    there = [name for name in RUN_FILES if (place.run / name).exists()]
    while True:
        what, name, way = draw.choice(OF_A_RUN), draw.choice(there), draw.choice(list(ways))
        run = shutil.copytree(place.run, place.scratch / "run")
        ways[way](run / name)
        yield f"{what}: {name} {way}", command_on(what, run, place)


def command_on(what: str, run: Path, place: Place) -> list[str]:
    """A command that reads a run."""
    films, out = str(place.films), str(place.scratch / "out")
    resumed = ["pretrain", "--data", films, *QUICK, "--labels", "folder"]
    return {
        "resume": [*resumed, "--steps", "3", "--out", str(run), "--resume"],
        "report": ["report", str(run)],
        "export": ["export", str(run), "--format", "transformers", "--to", out],
        "compare": ["compare", str(run), str(place.run)],
        "evaluate": ["evaluate", "--model", str(run), "--data", films, "--labels", "folder"],
        "continue": ["pretrain", "--data", films, "--effective-batch", "4", "--micro-batch", "4",
                     "--steps", "1", "--model", str(run), "--out", out],
        "batch-floor": ["batch-floor", "--model", str(run), "--data", films, "--repeats", "2",
                        "--out", out],
    }[what]  # fmt: skip


def of_data(place: Place, draw: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Commands on archives, indexes and weights that were made up or damaged, without end."""
    ways = damages(draw)
    out = str(place.scratch / "out")
    while True:
        kind = draw.choice(("tar", "index", "weights", "labels", "config"))
        data = place.scratch / "data"
        data.mkdir()
        if kind == "tar":
            name = draw.choice(list(TARS))
            (data / "a.tar").write_bytes(TARS[name])
            named = draw.choice((data, data / "a.tar"))
            yield f"tar: {name}", ["index", str(named), "--out", f"{out}.parquet"]
            continue
        way = draw.choice(list(ways))
        if kind == "index":
            path = Path(shutil.copy(place.index, data / "i.parquet"))
            ways[way](path)
            what = draw.choice((
                ["index", str(place.films), "--out", str(path)],
                ["pretrain", "--data", str(path), *QUICK, "--steps", "1", "--out", out],
            ))  # fmt: skip
        elif kind == "weights":
            path = Path(shutil.copy(place.weights, data / draw.choice(("w.pth", "w.safetensors"))))
            ways[way](path)
            what = ["evaluate", "--model", str(path), "--data", str(place.films), "--labels",
                    "folder"]  # fmt: skip
        elif kind == "labels":
            path = data / "labels.csv"
            path.write_text("path,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(9)))
            ways[way](path)
            what = ["evaluate", "--model", str(place.run), "--data", str(place.films), "--labels",
                    str(path)]  # fmt: skip
        else:
            path = Path(shutil.copy(place.run / "config.yaml", data / "c.yaml"))
            ways[way](path)
            what = ["plan", "--images", "9", "--no-measure", "--config", str(path)]
        yield f"{what[0]}: {kind} {way}", what


WORDS = (
    "", " ", "-1", "0", "1e999", "nan", ".inf", "9" * 5000, "x" * 5000, "a\0b", "\x1b[31m", "[b]",
    "../..", "/dev/null", "/dev/full", "/proc/self/mem", "caf\udce9", "$(true)", "{a: 1, a: 2}",
    "~",
    "*", "%s%n", "\u202etxt.exe", "a" * 250, "s3://", "file:///etc", "hf://x/y", "@step-1",
)  # fmt: skip


def of_words(place: Place, draw: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Commands with names, numbers and paths that nobody means, without end."""
    films, out, run = str(place.films), str(place.scratch / "out"), str(place.run)
    ways: tuple[Callable[[str], list[str]], ...] = (
        lambda w: ["pretrain", "--data", w, *QUICK, "--steps", "1", "--out", out],
        lambda w: ["pretrain", "--data", films, *QUICK, "--steps", "1", "--out", w],
        lambda w: ["pretrain", "--data", films, *QUICK, "--steps", w, "--out", out],
        lambda w: ["pretrain", "--data", films, "--model", w, "--steps", "1", "--out", out],
        lambda w: ["pretrain", "--data", films, *QUICK, "--steps", "1", "--set", w, "--out", out],
        lambda w: ["plan", "--images", "9", "--no-measure", "--set", f"optim.lr={w}"],
        lambda w: ["plan", "--images", w, "--no-measure"],
        lambda w: ["plan", "--images", "9", "--no-measure", "--json", w],
        lambda w: ["plan", "--images", "9", "--no-measure", "--config", w],
        lambda w: ["index", w, "--out", out + ".parquet"],
        lambda w: ["index", films, "--out", w],
        lambda w: ["evaluate", "--model", w, "--data", films, "--labels", "folder"],
        lambda w: ["evaluate", "--model", run, "--data", films, "--labels", w],
        lambda w: ["evaluate", "--model", run, "--data", films, "--labels", "folder", "--where", w],
        lambda w: ["evaluate", "--model", run, "--data", films, "--labels", "folder", "--seed", w],
        lambda w: ["export", w, "--format", "timm", "--to", out],
        lambda w: ["export", run, "--format", "transformers", "--to", w],
        lambda w: ["export", run, "--format", "transformers", "--to", out, "--step", w],
        lambda w: ["report", w],
        lambda w: ["report", run, "--out", w],
        lambda w: ["compare", w, run],
        lambda w: ["options", w],
        lambda w: [w],
    )
    while True:
        way, word = draw.randrange(len(ways)), draw.choice(WORDS)
        made = ways[way](word)
        place_of_word = " ".join(part[:30] for part in made if part != films)[:60]
        yield f"words: {place_of_word!r}", made


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--commands", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=("files", "data", "words"))
    parser.add_argument("--show", action="store_true", help="print each command and its line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outcomes = tried(Path(folder), arguments)
    return print_table(outcomes)


def tried(folder: Path, arguments: argparse.Namespace) -> dict[str, list[tuple[str, Outcome]]]:
    """Every command, by kind."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        place = prepare(folder)
    outcomes: dict[str, list[tuple[str, Outcome]]] = {}
    makers = {"files": of_files, "data": of_data, "words": of_words}
    kinds = arguments.kinds or list(makers)
    for kind in kinds:
        commands = makers[kind](place, random.Random(arguments.seed))
        for _ in range(arguments.commands // len(kinds)):
            shutil.rmtree(place.scratch, ignore_errors=True)
            place.scratch.mkdir()
            name, command = next(commands)
            begin = time.monotonic()
            outcome = watched(command, folder)
            outcomes.setdefault(kind, []).append((name, outcome))
            if outcome.fault or arguments.show:
                line = outcome.error.strip().splitlines()[-1:] or [""]
                took = time.monotonic() - begin
                what = outcome.fault or outcome.status
                print(f"{what} | {name} | {took:.0f} s | {line[0][:150]}", flush=True)
    return outcomes


def print_table(outcomes: dict[str, list[tuple[str, Outcome]]]) -> int:
    """What became of all of them, in Markdown; 1 if one was bad."""
    print(
        "\n| commands | number | status 0 | status 2 | tracebacks | other faults | most s"
        " | most MB |"
    )
    print("|---|" + "---:|" * 7)
    bad = 0
    for kind, found in outcomes.items():
        results = [outcome for _, outcome in found]
        statuses = Counter(outcome.status for outcome in results)
        tracebacks = sum(outcome.fault.startswith("traceback") for outcome in results)
        others = sum(bool(outcome.fault) for outcome in results) - tracebacks
        bad += tracebacks + others
        print(
            f"| {kind} | {len(found)} | {statuses[0]} | {statuses[2]} | {tracebacks} | {others}"
            f" | {max(o.seconds for o in results):.1f} | {max(o.growth for o in results) >> 20} |"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
