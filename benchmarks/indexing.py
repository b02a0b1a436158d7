"""How many DICOM headers a second does indexing read, beside plain pydicom in a loop?

    python benchmarks/indexing.py --data FOLDER [--files 4000] [--rounds 3] [--workers N]

Copies the DICOM files below FOLDER into a temporary one until there are that many, then reads their
headers in turn: `pydicom.dcmread(path, stop_before_pixels=True)` in a loop, as most scripts do, in
one process and in one a core; `dino-x index` in one process and in one a core, which also find the
files, check that all pixel data are there, hash samples of the bytes and write the table; and
`dino-x index` again, when there is nothing new. Processes are started again each time. The best of
the rounds counts. Everything is in the file cache after the first pass.
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path

import pydicom

from dino_x.data.image import DEFAULT
from dino_x.data.index import headers
from dino_x.data.index.catalog import update
from dino_x.data.readers.registry import looks_like_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    headers.PROCESSES_FROM = min(headers.PROCESSES_FROM, arguments.files)
    with tempfile.TemporaryDirectory() as folder:
        files = copies(arguments.data, Path(folder, "data"), arguments.files)
        ways = ways_of(files, Path(folder), arguments.workers)
        taken = {name: [timed(way) for _ in range(arguments.rounds)] for name, way in ways}
    best = {
        name: [min(column) for column in zip(*times, strict=True)] for name, times in taken.items()
    }
    base = best["pydicom, 1 process"]
    print(f"{len(files):,} files, best of {arguments.rounds}; ratios to pydicom")
    print(f"{'':<32}{'files/s':>9}{'ratio':>8}{'files/s of processor time':>28}{'ratio':>8}")
    for name, (wall, processor) in best.items():
        print(
            f"{name:<32}{len(files) / wall:>9,.0f}{base[0] / wall:>8.2f}"
            f"{len(files) / processor:>28,.0f}{base[1] / processor:>8.2f}"
        )


def ways_of(
    files: list[Path], folder: Path, workers: int
) -> list[tuple[str, Callable[[], object]]]:
    data, out = folder / "data", folder / "index.parquet"

    def loop() -> None:
        read_headers(files)

    def loops() -> None:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for _ in pool.map(read_headers, [files[at::workers] for at in range(workers)]):
                pass

    def anew(count: int) -> None:
        out.unlink(missing_ok=True)
        found = update([data], reading=DEFAULT, kept_in=out, workers=count)
        assert found.read == len(files)

    def again() -> None:
        assert update([data], reading=DEFAULT, kept_in=out, workers=workers).read == 0

    return [
        ("pydicom, 1 process", loop),
        ("dino-x index, 1 process", lambda: anew(1)),
        (f"pydicom, {workers} processes", loops),
        (f"dino-x index, {workers} processes", lambda: anew(workers)),
        ("dino-x index, nothing new", again),
    ]


def read_headers(files: list[Path]) -> None:
    """Read headers with pydicom in a loop."""
    for file in files:
        pydicom.dcmread(file, stop_before_pixels=True)


def timed(way: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processors: the second hardly depends on other work."""
    wall, processor = time.perf_counter(), processor_seconds()
    way()
    return time.perf_counter() - wall, processor_seconds() - processor


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def copies(source: Path, target: Path, count: int) -> list[Path]:
    """Copies of the DICOM files below a folder, 100 in a folder."""
    originals = [
        path
        for path in sorted(source.rglob("*"))
        if (path.is_file() and path.name.endswith((".dcm",))) or path.name.startswith("CT.")
    ]
    originals = [path for path in originals if path.is_file() and looks_like_image(path)]
    made = []
    for number, original in enumerate(islice(cycle(originals), count)):
        path = target / f"{number // 100:03d}" / f"{number:05d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, path)
        made.append(path)
    return made


if __name__ == "__main__":
    main()
