"""How fast do images become views, beside what others do? Images a second on CPU threads.

- views: 2 global crops of 224 and 8 local crops of 96 pixels from images of 512 x 512 in memory, to
  normalised float32 of three channels: random resized crops, flips, brightness and contrast, blur.
  Beside it torchvision's transforms image by image on Pillow images, as DINOv2 and DINOv3 compose
  them; on RGB, as they convert every image, and, which is less work, on grey.
- reading: canvases from the cache on disk, in batches of 64, beside decoding the same JPEG 2000
  DICOM files with pydicom and GDCM, both with as many threads.
- indexing: headers of DICOM files a second, beside pydicom's `stop_before_pixels` in a loop.

Ours and the peers take turns in one run. Images a second are by the clock on the wall, the best of
the rounds. "Ours is" compares processor seconds, which other programs on the machine disturb less,
by the median over the rounds.

    python benchmarks/data.py --dicom FOLDER       # FOLDER: JPEG 2000 files, searched recursively
    python benchmarks/data.py --only views         # needs torchvision for the peer
    python benchmarks/data.py --only views --threads 1

On a machine that others use, threads wait for each other and spin meanwhile, which counts as
processor time: compare one thread with one thread there.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line has it

import numpy as np
import pydicom
import torch
from PIL import Image

from dino_x.config.options import Options
from dino_x.data.canvas.canvas import CanvasForm, Crop, canvas_side
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.training.step.batch_plan import Cutter
from dino_x.views.crops import draw_views

MICRO_BATCH = 16
READ_BATCH = 64
EPOCHS = 20
COPIES = 300  # DICOM files that are indexed

Rates = tuple[float, float]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds")
    parts = {"views": views, "reading": reading, "indexing": indexing}
    for name, part in parts.items():
        if options.only in (None, name):
            part(options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dicom", type=Path, help="folder with JPEG 2000 DICOM files")
    parser.add_argument("--only", choices=["views", "reading", "indexing"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def take_turns(
    title: str, ours: Callable[[], Rates], peers: dict[str, Callable[[], Rates]], rounds: int
) -> None:
    """Print rates of ours and each peer, and how many times faster ours is."""
    for once in (ours, *peers.values()):
        once()  # libraries load, threads start, files are in memory
    rates = [[once() for once in (ours, *peers.values())] for _ in range(rounds)]
    best = [max(by_clock for by_clock, _ in column) for column in zip(*rates, strict=True)]
    print(f"\n{title:<52}{'best':>12}{'ours is':>16}")
    print(f"  {'ours':<50}{best[0]:>12,.1f}")
    for place, name in enumerate(peers, start=1):
        times = statistics.median(row[0][1] / row[place][1] for row in rates)
        print(f"  {name:<50}{best[place]:>12,.1f}{times:>13.1f} x")


def rate(work: Callable[[], int]) -> Rates:
    """How much is done a second, and a processor second."""
    started, worked = time.perf_counter(), time.process_time()
    done = work()
    return done / (time.perf_counter() - started), done / (time.process_time() - worked)


def views(options: argparse.Namespace) -> None:
    """Crops of images in memory."""
    rng = np.random.default_rng(0)
    side = 512
    images = rng.integers(0, 256, (MICRO_BATCH, side, side), dtype=np.uint8)
    cutter = Cutter(Options(), [0.5] * 3, [0.25] * 3, torch.device("cpu"), torch.float32)
    settings = cutter.options.views
    kinds = [
        (draw_views(rng, MICRO_BATCH, 2), settings.global_size, settings.global_scale),
        (draw_views(rng, MICRO_BATCH, 8), settings.local_size, settings.local_scale),
    ]

    def ours() -> int:
        pixels = torch.from_numpy(images[:, None] / np.float32(255))
        canvases = Canvases(pixels, torch.ones(MICRO_BATCH))
        for draws, size, scale in kinds:
            cutter.crops(canvases, draws, size, scale)
        return MICRO_BATCH

    peers = {}
    try:
        for mode in ("RGB", "L"):
            peers[f"torchvision, an image at a time, {mode}"] = of_torchvision(
                images, mode, options.threads
            )
    except ImportError as error:
        print(f"\nthe peer of views is not installed ({error})")
    take_turns("views of 512 x 512 images, images/s", lambda: rate(ours), peers, options.rounds)


def of_torchvision(images: np.ndarray, mode: str, threads: int) -> Callable[[], Rates]:
    """The same views by torchvision's transforms, an image in each of some threads."""
    from torchvision.transforms import v2

    grey = mode == "L"
    bicubic = v2.InterpolationMode.BICUBIC
    jitter = v2.ColorJitter(0.4, 0.4) if grey else v2.ColorJitter(0.4, 0.4, 0.2, 0.1)
    blur = v2.GaussianBlur(9, (0.1, 2.0))
    channels = 1 if grey else 3
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    end.append(v2.Normalize([0.5] * channels, [0.25] * channels))

    def kind(size: int, scale: tuple[float, float], blurred: float) -> v2.Compose:
        crop = [v2.RandomResizedCrop(size, scale, interpolation=bicubic), v2.RandomHorizontalFlip()]
        colour = [v2.RandomApply([jitter], 0.8), *([] if grey else [v2.RandomGrayscale(0.2)])]
        return v2.Compose([*crop, *colour, v2.RandomApply([blur], blurred), *end])

    # The first global crop is always blurred and the second in 1 of 10; solarisation left out.
    kinds = [kind(224, (0.32, 1.0), 1.0), kind(224, (0.32, 1.0), 0.1)]
    kinds += [kind(96, (0.05, 0.32), 0.5)] * 8
    pictures = [Image.fromarray(image).convert(mode) for image in images[: 2 * threads]]

    def views_of(picture: Image.Image) -> list[torch.Tensor]:
        return [transform(picture) for transform in kinds]

    def once() -> Rates:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # a thread an image, as a data loader's workers have
        try:
            with ThreadPoolExecutor(threads) as pool:
                return rate(lambda: len(list(pool.map(views_of, pictures))))
        finally:
            torch.set_num_threads(before)

    return once


def dicom_files(folder: Path | None) -> list[Path]:
    """All DICOM files below a folder, by their content."""
    if folder is None:
        return []
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if path.read_bytes()[128:132] == b"DICM"]


def jpeg_2000(folder: Path | None) -> list[Path]:
    """The JPEG 2000 files below a folder."""
    found = []
    for path in dicom_files(folder):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if header.file_meta.TransferSyntaxUID.startswith("1.2.840.10008.1.2.4.9"):
            found.append(path)
    if not found:
        print("\nno JPEG 2000 DICOM files: name a folder of them with --dicom")
    return found


def reading(options: argparse.Namespace) -> None:
    """Canvases from the cache on disk, and the decoding that it saves."""
    files = jpeg_2000(options.dicom)
    if not files:
        return
    index = Index(build_index(files, verify="headers").rows)
    settings = Options().views
    crops = [Crop(settings.global_size, settings.global_scale[0])]
    crops.append(Crop(settings.local_size, settings.local_scale[0]))
    form = CanvasForm(canvas_side(index, crops), 1)
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(len(index)) for _ in range(EPOCHS)])
    batches = [rows[i : i + READ_BATCH] for i in range(0, len(rows), READ_BATCH)]

    def read(loader: Loader, these: list[np.ndarray]) -> int:
        return sum(len(batch.pixels) for batch in loader.prefetch(these))

    def decode(path: Path) -> np.ndarray:
        return pydicom.dcmread(path).pixel_array

    def uncached() -> int:
        with Loader(index, form, cache_bytes=0, workers=options.threads) as loader:
            return read(loader, [np.arange(len(index))])

    def decoded() -> int:
        with ThreadPoolExecutor(options.threads) as pool:
            return len(list(pool.map(decode, files)))

    with tempfile.TemporaryDirectory() as folder:
        store = CanvasStore(Path(folder), keys_of(index.rows, form), form, limit_bytes=10**10)
        with Loader(index, form, cache_bytes=0, workers=options.threads, store=store) as loader:
            read(loader, [np.arange(len(index))])
            take_turns(
                f"reading {len(index)} slices as {form.side} x {form.side}, images/s",
                lambda: rate(lambda: read(loader, batches)),
                {
                    "pydicom with GDCM, decoding JPEG 2000": lambda: rate(decoded),
                    "ours without a cache: decoded and resized": lambda: rate(uncached),
                },
                options.rounds,
            )


def copies(files: list[Path], folder: Path) -> Iterator[Path]:
    """As many files as are indexed, from those there are."""
    for number in range(COPIES):
        copy = folder / f"{number:04}.dcm"
        shutil.copy(files[number % len(files)], copy)
        yield copy


def indexing(options: argparse.Namespace) -> None:
    """Headers of DICOM files."""
    files = dicom_files(options.dicom)
    if not files:
        print("\nno DICOM files to index: name a folder of them with --dicom")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = list(copies(files, folder))

        def ours() -> int:
            return len(build_index([folder], verify="headers", workers=options.threads).rows)

        def plain() -> int:
            return len([pydicom.dcmread(path, stop_before_pixels=True) for path in paths])

        take_turns(
            f"indexing {COPIES} DICOM files, files/s",
            lambda: rate(ours),
            {"pydicom, stop_before_pixels, in a loop": lambda: rate(plain)},
            options.rounds,
        )


if __name__ == "__main__":
    main()
