"""Do damaged files that are no images ever end in something else than a result or a reason?

    python benchmarks/fuzz_files.py [--files 500] [--seed 0] [--kinds tar parquet ...]

Makes that many damaged tars, Parquet files of images, indexes, configurations, evaluations, files
of weights (.pth, .safetensors), checkpoints and their checksums: cut off, bits flipped, bytes of
extreme values, pieces moved, other text. Each is read in a process that is watched: it must give a
result, or one of our own errors, within 5 s of the processor's time and 1 GB. Exit status 1 if one
does not. Linux only.
"""

import argparse
import io
import json
import os
import resource
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from dino_x.config.options import Options
from dino_x.config.presets import check, read_config
from dino_x.data.image import DEFAULT, Unreadable
from dino_x.data.index.catalog import update
from dino_x.data.index.table import read_table
from dino_x.data.readers import registry
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.report.tables import evaluation_tables
from dino_x.runs import checkpoint
from dino_x.runs.evaluation_file import read_evaluation
from tests.data.readers.fuzzing import MUTATIONS, _mutated
from tests.model.released_format import network, released

SECONDS, BYTES = 5.0, 2**30
TEXTS = (
    b"", b"null", b"[]", b"{}", b"17", b'"text"', b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe\x00",
    b"!!python/object/apply:os.system ['true']", b"a: &a [*a]", b"9" * 9_000, b"\0" * 4096,
)  # fmt: skip
Reader = Callable[[Path], object]


def an_image() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(64, dtype=np.uint8).reshape(8, 8))
    return file.getvalue()


def a_tar(folder: Path) -> Path:
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(4):
            info = tarfile.TarInfo(f"{'long' * 40 * (number == 2)}/{number}é.npy")
            info.size = len(an_image())
            tar.addfile(info, io.BytesIO(an_image()))
    return folder / "a.tar"


def a_parquet(folder: Path) -> Path:
    images = [{"bytes": an_image(), "path": f"{number}.npy"} for number in range(9)]
    pq.write_table(pa.table({"image": images}), folder / "a.parquet", row_group_size=4)
    return folder / "a.parquet"


def an_index(folder: Path) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for number in range(3):
        (folder / "images" / f"{number}.npy").write_bytes(an_image())
    update([folder / "images"], reading=DEFAULT, kept_in=folder / "i.parquet", workers=1)
    return folder / "i.parquet"


def a_config(folder: Path) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(Options().model_dump(mode="json"), sort_keys=False))
    return path


def an_evaluation(folder: Path) -> Path:
    figure = {"value": 0.8, "low": 0.7, "high": 0.9}
    tasks = {"knn": {"20": {"balanced_accuracy": figure}}, "linear": {"all": {"auroc": figure}}}
    result = {
        "results": {"model": tasks, "random": tasks, "pixels": tasks}, "settings": {"seed": 0},
        "counts": {"train": {"a": 3}, "test": {"a": 2}}, "warnings": ["x"],
        "headline": {"knn": "20"},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(result, indent=1))
    return folder / "evaluation.json"


def tensors() -> dict[str, torch.Tensor]:
    return {"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4)}


def a_pth(folder: Path) -> Path:
    torch.save(released(network("dinov3")), folder / "w.pth")
    return folder / "w.pth"


def a_safetensors(folder: Path) -> Path:
    network("dinov2").save_pretrained(folder / "model")
    return folder / "model" / "model.safetensors"


def a_checkpoint(folder: Path) -> Path:
    state = {"student": tensors(), "recovery": {"back_to": None}, "made_of": "{}"}
    return checkpoint.save(folder, 3, state, 2)


def a_checksum(folder: Path) -> Path:
    return a_checkpoint(folder).with_suffix(".sha256")


def read_archive(path: Path) -> object:
    """All that its headers name, and every image."""
    records = update([path], reading=DEFAULT, workers=1).table.records
    for record in records:
        for ref in record.refs:
            try:
                registry.read(ref)
            except Unreadable:
                continue
    return records


def read_page(path: Path) -> object:
    """As the report does."""
    result = read_evaluation(path)
    return result and evaluation_tables(result)


def newest(path: Path) -> object:
    """As a resume does."""
    return checkpoint.load_newest(path.parent, torch.device("cpu"))


KINDS: dict[str, tuple[Callable[[Path], Path], Reader]] = {
    "tar": (a_tar, read_archive),
    "parquet": (a_parquet, read_archive),
    "index": (an_index, read_table),
    "config": (a_config, lambda path: check(read_config(path))),
    "evaluation": (an_evaluation, read_page),
    "pth": (a_pth, lambda path: load_backbone(path, device="cpu")),
    "safetensors": (a_safetensors, lambda path: load_backbone(path.parent, device="cpu")),
    "checkpoint": (a_checkpoint, newest),
    "checksum": (a_checksum, newest),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a file: result, reason, or the name of a fault; and what it took."""

    what: str
    seconds: float
    growth: int

    @property
    def is_good(self) -> bool:
        """Whether it is what a user should get, soon and without much memory."""
        return self.what in ("result", "reason") and self.seconds < SECONDS and self.growth < BYTES


def watched(read: Reader, path: Path, folder: Path) -> Outcome:
    """Read a file in a fork."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read(path)
                what = "result"
            except (UserError, Unreadable):
                what = "reason"
            except BaseException as error:
                what = f"{type(error).__name__}: {error}"[:160]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            said.write_text(f"{grown * 1024}\n{what}")
        finally:
            os._exit(0)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    if not said.exists():
        return Outcome(f"ended with {os.waitstatus_to_exitcode(status)}", seconds, 0)
    growth, _, what = said.read_text(errors="replace").partition("\n")
    return Outcome(what, seconds, int(growth))


def damaged(content: bytes, number: int, rng: np.random.Generator) -> bytes:
    """A damaged copy; the first ones are other texts."""
    if number < len(TEXTS):
        return TEXTS[number]
    mutate = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    return _mutated(content, mutate, rng)


def tried(kind: str, files: int, seed: int) -> list[Outcome]:
    """Damage and read one kind of file."""
    make, read = KINDS[kind]
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name, "files")
        place.mkdir()
        path = make(place)
        whole = path.read_bytes()
        assert watched(read, path, Path(name)).what == "result", f"the whole {kind} is refused"
        for number in range(files):
            path.write_bytes(damaged(whole, number, rng))
            outcome = watched(read, path, Path(name))
            if not outcome.is_good:
                print(f"BAD  {kind} {number}: {outcome}", flush=True)
            outcomes.append(outcome)
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    found = {kind: tried(kind, arguments.files, arguments.seed) for kind in arguments.kinds}
    print("\n| file | number | results | reasons | faults | most s | most MB |")
    print("|---|" + "---:|" * 6)
    faults = 0
    for kind, outcomes in found.items():
        counts = Counter(outcome.what for outcome in outcomes)
        bad = sum(not outcome.is_good for outcome in outcomes)
        faults += bad
        print(
            f"| {kind} | {len(outcomes)} | {counts['result']} | {counts['reason']} | {bad}"
            f" | {max(o.seconds for o in outcomes):.1f} | {max(o.growth for o in outcomes) >> 20} |"
        )
    print(f"\n{time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
