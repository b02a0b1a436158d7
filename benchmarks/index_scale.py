"""What does an index of very many images cost a run: seconds, and memory of each process?

    python benchmarks/index_scale.py [--rows 1000000 10000000 100000000] [--folder DIR]

The index is made up: CT slices of 512 x 512 in tars of 10,000, 200 to a series, as `dino-x index`
writes them. It is harder than most: slices lie in the order of their names, not of their positions,
and the two series of a patient lie far apart. It is written a million rows at a time, and removed
again; 10^8 rows take 9 GB of disk. What is measured is measured in a process of its own.

Times are of the wall, and of work: seconds of processors, where the machine has others to serve.

- make: the row file, once for an index
- open: `build_index`, with the row file there
- order: what a run keeps of patients and series
- step: 4,096 row numbers; the first one of a run, and the median of 100
- images: 4,096 objects for the reader, made when they are read
- condition: a condition on two columns, which a third of the images meet

    python benchmarks/index_scale.py --mixing

How often do two images share a step, if the order is computed? The standard deviation of that
number is compared with that of steps drawn at random, for several numbers of chunks C and B = 16.

Private memory is what a process has for itself; what it shares with others (libraries, and the
system's cache of files) does not grow with the number of processes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dino_x.data.image import DEFAULT
from dino_x.data.index.index import build_index
from dino_x.data.index.layout import chunk_bounds
from dino_x.data.index.rows import Rows
from dino_x.data.index.table import SCHEMA, Table, schema_of
from dino_x.data.loading.dealing import Layout
from dino_x.data.loading.order import order_of
from dino_x.data.loading.sampler import sample_indices

AT_ONCE = 1_000_000
SERIES, IN_TAR, BYTES = 200, 10_000, 526_336
BATCH = 4096
CONDITION = 'spacing_row_mm < 0.75 and body_part == "CHEST"'


def write(out: Path, rows: int) -> None:
    """Write an index of made-up slices, `AT_ONCE` at a time."""
    folder = out.parent / "ct"
    schema = schema_of(Table((folder,), [], DEFAULT))
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for start in range(0, rows, AT_ONCE):
            numbers = np.arange(start, min(start + AT_ONCE, rows))
            writer.write_table(part(numbers, rows, folder).cast(schema))


def part(numbers: np.ndarray, rows: int, folder: Path) -> pa.Table:
    """Some rows of the index."""
    n, series, place = len(numbers), numbers // SERIES, numbers % SERIES
    tar = joined("ct-", digits(numbers // IN_TAR, 6), ".tar")
    patient = series % max(1, rows // SERIES // 2)
    values: dict[str, Any] = {
        "path": joined("", tar, "/", digits(series, 7), "/", digits(place, 4), ".dcm"),
        "source": str(folder),
        "shard": tar,
        "offset": numbers % IN_TAR * 530_000,
        "format": "DICOM",
        "frame": 0, "height": 512, "width": 512, "channels": 1, "bits": 12,
        "modality": "CT", "body_part": "CHEST", "photometric": "MONOCHROME2",
        "spacing_row_mm": 0.7 + series % 9 / 50,
        "spacing_column_mm": 0.7 + series % 9 / 50,
        "thickness_mm": 1.25,
        "position_mm": place * 77 % SERIES * 1.25 - 100,
        "orientation": "1 0 0 0 1 0",
        "slope": 1.0, "intercept": -1024.0, "window_low": -160.0, "window_high": 240.0,
        "patient": keys(patient), "series": keys(series + 10**9),
        "size": BYTES, "mtime_ns": 1, "shard_size": IN_TAR * 530_000,
        "content": random_keys(n, int(numbers[0])),
    }  # fmt: skip
    columns = [column(values.get(field.name), field.type, n) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def column(value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if value is None:
        return pa.nulls(rows, plain).cast(kind)
    if isinstance(value, pa.Array | np.ndarray):
        return pa.array(value).cast(plain).cast(kind)
    return pa.repeat(pa.scalar(value, plain), rows).cast(kind)


def digits(numbers: np.ndarray, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def joined(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def keys(numbers: np.ndarray) -> pa.Array:
    """Twenty digits as keys of patients have them: they do not rise with the numbers."""
    few, which = np.unique(numbers, return_inverse=True)
    texts = [f"{number * 0x9E3779B97F4A7C15 % 2**80:020x}" for number in few.tolist()]
    return pa.array(texts).take(pa.array(which))


def random_keys(count: int, seed: int) -> pa.Array:
    text = np.random.default_rng(seed).bytes(10 * count).hex().encode()
    fixed = pa.Array.from_buffers(pa.binary(20), count, [None, pa.py_buffer(text)])
    return fixed.cast(pa.binary()).cast(pa.string())


def private_mb() -> float:
    """Memory of this process alone, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds since it was made: on the wall, and of this process's threads."""

    def __init__(self) -> None:
        self.wall, self.work = time.perf_counter(), time.process_time()

    def read(self) -> list[float]:
        """How many there are by now."""
        return [time.perf_counter() - self.wall, time.process_time() - self.work]


def made(index: Path) -> dict[str, Any]:
    before, clock = peak_mb(), Clock()
    build_index([index], verify="headers")
    return {"make": clock.read(), "peak": peak_mb() - before}


def opened(index: Path) -> dict[str, Any]:
    """What a run does, in its order."""
    found: dict[str, Any] = {"before": private_mb()}
    clock = Clock()
    rows = build_index([index], verify="headers").rows
    found |= {"open": clock.read(), "after": private_mb()}
    assert isinstance(rows, Rows)
    clock = Clock()
    order = order_of(rows)
    found["order"] = clock.read()
    seconds = []
    for step in range(101):
        clock = Clock()
        batch = sample_indices(0, step, BATCH, len(rows), order)
        seconds.append(clock.read())
    found |= {"first": seconds[0], "step": np.median(seconds[1:], axis=0).tolist()}
    clock = Clock()
    refs = [rows[number] for number in batch.tolist()]
    found |= {"images": clock.read(), "run": private_mb()}
    assert len({ref.patient for ref in refs}) == min(BATCH, len(rows) // SERIES // 2)
    return found


def chosen(index: Path) -> dict[str, Any]:
    every = len(build_index([index], verify="headers"))
    clock = Clock()
    rows = build_index([index], verify="headers", where=CONDITION).rows
    found: dict[str, Any] = {"condition": clock.read(), "share": len(rows) / every}
    clock = Clock()
    order = order_of(rows)
    found["order"] = clock.read()
    clock = Clock()
    sample_indices(0, 1, BATCH, len(rows), order)
    return found | {"first": clock.read(), "after": private_mb(), "peak": peak_mb()}


def mixing(images: int = 8192, batch: int = 16, epochs: int = 200, watched: int = 64) -> None:
    """Count how often some images share a step with each other one."""
    for chunks in (64, 512):
        bounds = chunk_bounds(np.arange(images), images, chunks)
        layout = Layout(lambda places: places, bounds)
        some = np.random.default_rng(0).choice(images, watched, replace=False)
        row_of = {int(image): row for row, image in enumerate(some)}
        together = np.zeros((watched, images), np.int32)
        for step in range(epochs * images // batch):
            drawn = layout.step(0, step, batch)
            for image in drawn[np.isin(drawn, some)].tolist():
                together[row_of[image], drawn] += 1
        others = together[some[:, None] != np.arange(images)]
        print(
            f"C = {len(bounds) - 1:5}, {(len(bounds) - 1) / batch:5.1f} B: shared steps"
            f" {others.mean():.3f}, deviation {others.std():.3f},"
            f" at random {np.sqrt(others.mean()):.3f}",
            flush=True,
        )


PARTS = {"made": made, "opened": opened, "chosen": chosen}


def in_a_process(part: str, index: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--part", part, "--index", str(index)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(rows: int, index: Path) -> None:
    clock = Clock()
    write(index, rows)
    print(f"{rows:,} rows, written in {clock.read()[0]:.0f} s")
    found = in_a_process("made", index)
    line("make", found["make"], f"{found['peak']:,.0f} MB more at the peak")
    sizes = [path.stat().st_size / rows for path in (index, index.with_suffix(".rows"))]
    print(f"  bytes a row    {sizes[0]:.0f} in the index, {sizes[1]:.0f} in the row file")
    found = in_a_process("opened", index)
    memory = [round(found[name]) for name in ("before", "after", "run")]
    line("open", found["open"], "private memory {} MB before, {} after".format(*memory))
    line("order", found["order"], "")
    line("first step", found["first"], "")
    line("step", found["step"], f"private memory {memory[2]} MB")
    line("images", found["images"], f"{BATCH:,} of them")
    found = in_a_process("chosen", index)
    line("condition", found["condition"], f"{100 * found['share']:.0f}% of the images meet it")
    line("its order", found["order"], "")
    memory = [round(found[name]) for name in ("after", "peak")]
    line(
        "its first step", found["first"], "private memory {} MB, all at the peak {}".format(*memory)
    )


def line(what: str, seconds: list[float], more: str) -> None:
    wall, work = (f"{1e3 * of:,.1f} ms" if of < 1 else f"{of:,.1f} s" for of in seconds)
    print(f"  {what:<15}{wall:>12}, of work {work:>12}   {more}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[10**6, 10**7, 10**8])
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary one if none")
    parser.add_argument("--mixing", action="store_true", help="how often two images share a step")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.index)))
        return
    if options.mixing:
        mixing()
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            measure(rows, Path(name, "index.parquet"))


if __name__ == "__main__":
    main()
