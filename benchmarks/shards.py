"""How fast are images read in random order: files, tar, Parquet, and stores that answer late?

    python benchmarks/shards.py                # files, tar, row groups of 16 to 1,000
    python benchmarks/shards.py --latency 30   # a store that takes 30 ms an answer

Images are .npy of 100 KB, whose decoding costs little: most of what is left is the reading. Files
lie in the system's memory by then, as they were just written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading.loader import Loader
from dino_x.data.readers import registry
from dino_x.data.storage import row_groups

SIDE = 224
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    (folder / "files").mkdir()
    for number in range(count):
        values = rng.integers(0, 4096, (SIDE, SIDE), dtype=np.uint16)
        np.save(folder / "files" / f"{number:06}.npy", values)
    return folder / "files"


def pack(files: Path, rows: int) -> Path:
    out = files.parent / f"{rows}.parquet"
    names = sorted(files.iterdir())
    with pq.ParquetWriter(out, pa.schema([("image", STRUCT)]), compression="none") as writer:
        for start in range(0, len(names), rows):
            images = [{"bytes": f.read_bytes(), "path": f.name} for f in names[start:][:rows]]
            writer.write_table(pa.table({"image": pa.array(images, STRUCT)}))
    return out


def pack_tar(files: Path) -> Path:
    import tarfile

    out = files.parent / "images.tar"
    with tarfile.open(out, "w") as tar:
        for file in sorted(files.iterdir()):
            tar.add(file, file.name)
    return out


def per_second(index: Index, order: np.ndarray) -> float:
    """By processor time: the machine may be shared."""
    start = time.process_time()
    for row in order:
        registry.read(index.rows[row])
    return len(order) / (time.process_time() - start)


def on_disk(files: Path, kept_mb: int) -> None:
    count = sum(1 for _ in files.iterdir())
    places = {"files": files, "tar": pack_tar(files)}
    places |= {f"Parquet, row groups of {rows:,}": pack(files, rows) for rows in (16, 100, 1000)}
    order = np.random.default_rng(1).permutation(count)
    row_groups.groups.limit_bytes = kept_mb * 2**20
    base = 0.0
    build_index([files], verify="headers")  # what is imported and found first is not counted
    print(f"{count:,} images of 100 KB, {kept_mb} MB of row groups kept, one thread, by its time")
    for name, place in places.items():
        started = time.process_time()
        index = build_index([place], verify="headers", workers=1)
        indexing = len(index) / (time.process_time() - started)
        random = per_second(index, order[: 40 if "1,000" in name else 400])
        in_order = per_second(index, np.arange(min(count, 1000)))
        base = base or random
        print(
            f"{name:30} index {indexing:7,.0f}/s   random {random:8,.0f}/s ({random / base:.2f})"
            f"   in order {in_order:8,.0f}/s"
        )


def late(files: Path, milliseconds: float) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/late/images.tar", pack_tar(files).read_bytes())
    index = build_index([Path("memory://late/images.tar")], verify="headers")
    read = store.cat_file

    def cat_file(path: str, **span: int) -> bytes:
        time.sleep(milliseconds / 1000)
        return bytes(read(path, **span))

    store.cat_file = cat_file
    order = np.random.default_rng(1).permutation(len(index))
    form = CanvasForm(side=SIDE, channels=1)
    for name in ("filled", "used", "used again"):
        cache = CanvasStore(
            files.parent / "cache", keys_of(index.rows, form), form, limit_bytes=10**10
        )
        with Loader(index, form, cache_bytes=0, workers=2, store=cache) as loader:
            start = time.perf_counter()
            for _ in loader.prefetch(np.array_split(order, len(order) // 64)):
                pass
            speed = len(order) / (time.perf_counter() - start)
            print(f"{milliseconds:g} ms an answer, --cache {name}: {speed:,.0f} images/s")
    for batch in (8, 64):
        for fetches in (1, 2, 4, 8, 16, 32, 64, 128):
            images = order[: min(len(order), 40 * fetches)]
            batches = np.array_split(images, max(1, len(images) // batch))
            with Loader(index, form, cache_bytes=0, workers=2, fetches=fetches) as loader:
                start = time.perf_counter()
                for _ in loader.prefetch(batches):
                    pass
                speed = len(images) / (time.perf_counter() - start)
            most = 1000 / milliseconds * fetches
            print(
                f"{milliseconds:g} ms an answer, micro-batch {batch:3}, {fetches:3} fetches:"
                f" {speed:7,.0f} images/s, {speed / most:4.0%} of {most:,.0f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--kept-mb", type=int, default=100)
    parser.add_argument("--latency", type=float, metavar="MS")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = make(Path(folder), arguments.images)
        if arguments.latency:
            late(files, arguments.latency)
        else:
            on_disk(files, arguments.kept_mb)


if __name__ == "__main__":
    main()
