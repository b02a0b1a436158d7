"""What holds on this GPU, and how fast is it? Everything that can be shown in some minutes.

    python benchmarks/gpu.py [--minutes 8] [--only right fast fed learns peer] [--data FOLDER]

    right    the promises: gradients, losses, views, a run that is killed, two processes, export
    fast     images/s, MFU and memory of ViT-S, B and L; what exactness costs; where a step goes
    fed      images/s from the disk cache, JPEG and DICOM; what steps wait for images
    learns   a ViT-S on chest films, judged by patient beside random weights, pixels and naive
             accumulation: on FOLDER (cxr_pneumonia_224), or on the demo's films
    peer     lightly-train's dinov2 at the same size, if its command is installed or --peer names it

Each part is a process of its own with a share of the minutes. A result is a JSON line in --out as
soon as it is known, so that a machine that is taken away loses only the rest; the table comes last,
and --table prints it from what --out holds. Without a GPU all is at toy size on the CPU, and the
table says so: it shows that the command works, and nothing about a GPU.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

from benchmarks.gpu_parts.children import part_command, run_part  # noqa: E402
from benchmarks.gpu_parts.results import Results, read  # noqa: E402
from benchmarks.gpu_parts.table import broken, table  # noqa: E402

SHARES = {"right": 2.5, "fast": 2.5, "fed": 0.75, "learns": 2.5, "peer": 1.5}  # of the minutes
SOFT = 0.85  # share of its time in which a part begins new things; then it would be ended
LEAST_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and print the table. Returns: 1 if something does not hold, else 0."""
    asked = parse(arguments)
    out: Path = asked.out
    if asked.part:
        in_this_process(asked.part, out, asked.seconds, passed_on(asked))
        return 0
    if not asked.table:
        out.unlink(missing_ok=True)
        run_parts(asked.only, out, 60 * asked.minutes, passed_on(asked))
    lines = read(out)
    print(table(lines, list(SHARES)))
    return int(bool(broken(lines)))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=minutes, default=8.0, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--data", help="folder of cxr_pneumonia_224, for learns")
    parser.add_argument("--peer", help="lightly-train's command")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="the results")
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    parser.add_argument("--part", choices=list(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.data and not (Path(asked.data) / "manifest.csv").is_file():
        parser.error(f"--data {asked.data} holds no manifest.csv; name the folder that does")
    if not asked.out.resolve().parent.is_dir():
        parser.error(f"--out {asked.out}: there is no such folder")
    return asked


def minutes(text: str) -> float:
    """A number of minutes above 0."""
    value = float(text)
    if not 0 < value < 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is no number of minutes above 0")
    return value


def passed_on(asked: argparse.Namespace) -> dict[str, str]:
    """What a part is told beside its time."""
    named = {"data": asked.data, "peer": asked.peer}
    return {name: str(value) for name, value in named.items() if value}


def run_parts(names: list[str], out: Path, seconds: float, more: dict[str, str]) -> None:
    """Each part in its own process; time that one leaves goes to those after it."""
    until = time.monotonic() + seconds
    chosen = [name for name in SHARES if name in names]
    for place, name in enumerate(chosen):
        of_the_rest = SHARES[name] / sum(SHARES[other] for other in chosen[place:])
        limit = max(LEAST_SECONDS, (until - time.monotonic()) * of_the_rest)
        flags = [text for key, value in more.items() for text in (f"--{key}", value)]
        print(f"{name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        run_part(name, part_command(name, out, limit, flags), out, limit)


def in_this_process(name: str, out: Path, seconds: float, more: dict[str, str]) -> None:
    """What a part's process does."""
    from benchmarks.gpu_parts.card import Card

    results = Results(out, name, SOFT * seconds)
    card = Card.here()
    results.machine(card.described())
    part = importlib.import_module(f"benchmarks.gpu_parts.{name}")
    results.attempt("the part", lambda: part.measure(card, results, more))


if __name__ == "__main__":
    sys.exit(main())
