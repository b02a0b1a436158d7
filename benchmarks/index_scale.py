"""What does an index of many images cost: memory and seconds a row, and the sampler a step?

    python benchmarks/index_scale.py [--rows 1000000]

The index is made up: CT slices of 512 x 512 in tar shards of 10,000, 200 to a series, two series
to a patient, as `dino-x index` writes them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from dino_x.data.image import DEFAULT, ImageRef
from dino_x.data.index.headers import Record
from dino_x.data.index.index import build_index
from dino_x.data.index.table import Table, write_table
from dino_x.data.loading.sampler import sample_indices, strata_of
from dino_x.data.storage.archives import Archive
from dino_x.data.storage.member import Member

T = TypeVar("T")


def record(number: int, folder: Path, shards: dict[int, Archive]) -> Record:
    which, series = number // 10_000, number // 200
    if which not in shards:
        shards[which] = Archive(folder / f"ct-{which:06}.tar", 10_000 * 530_000, 1)
    place = (number % 10_000 * 530_000, 526_336)
    path = Member(
        shards[which].path / f"{series:07}" / f"{number % 200:04}.dcm", shards[which], *place
    )
    ref = ImageRef(
        path=path, height=512, width=512, modality="CT", spacing_mm=(0.7 + series % 9 / 50,) * 2,
        thickness_mm=1.25, position_mm=number % 200 * 1.25 - 100, patient=f"{series // 2:020x}",
        series=f"{series:020x}", format="DICOM", bits=12, body_part="CHEST", slope=1.0,
        intercept=-1024.0, photometric="MONOCHROME2", window=(-160.0, 240.0),
    )  # fmt: skip
    return Record(path, 0, 526_336, 1, (ref,), None, f"{number:020x}")


def resident_mb() -> float:
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def timed(what: str, run: Callable[[], T], rows: int) -> T:
    before, start = resident_mb(), time.perf_counter()
    result = run()
    seconds, after = time.perf_counter() - start, resident_mb()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{what:44} {seconds:7.1f} s {rows / seconds:10,.0f} rows/s   kept"
        f" {(after - before) * 2**20 / rows:6,.0f} bytes a row   peak {peak:7,.0f} MB",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps-of", type=int, nargs="*", default=[1_000_000, 10_000_000])
    rows = parser.parse_args().rows
    steps_of = parser.parse_args().steps_of
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name, "index.parquet")
        writer = get_context("spawn").Process(target=write, args=(rows, folder, out))
        writer.start()
        writer.join()
        print(f"{rows:,} rows: {out.stat().st_size / rows:.0f} bytes a row on disk")
        index = timed("an index read by a run", lambda: build_index([out], verify="headers"), rows)
        strata = timed("patients and series (strata_of)", lambda: strata_of(index.rows), rows)
        for batch in (256, 2048):
            steps("with patients", batch, rows, strata)
    for many in steps_of:
        for batch in (256, 2048):
            steps("nothing known", batch, many, None)


def steps(what: str, batch: int, images: int, strata) -> None:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    sample_indices(0, 0, batch, images, strata)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for step in range(1, 101):
        sample_indices(0, step, batch, images, strata)
    each = (time.perf_counter() - start) / 100
    print(
        f"sampler, {what}, {images:,} images, batch {batch:,}: first step of an epoch"
        f" {first:.2f} s, others {1e6 * each:,.0f} us",
        flush=True,
    )


def write(rows: int, folder: Path, out: Path) -> None:
    shards: dict[int, Archive] = {}
    records = timed(
        "records in memory", lambda: [record(n, folder, shards) for n in range(rows)], rows
    )
    timed("write_table", lambda: write_table(Table((folder,), records, DEFAULT), out), rows)


if __name__ == "__main__":
    main()
