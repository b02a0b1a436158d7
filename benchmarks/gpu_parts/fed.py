"""Is the GPU fed? Images a second from the disk cache, JPEG and DICOM, and what a step waits."""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.fast import CARD, TITLES, TOY, one_step
from benchmarks.gpu_parts.results import Results
from dino_x.config.resolve import Facts, resolve
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.canvas.store import CanvasStore, keys_of
from dino_x.data.index.index import Index, build_index
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.machine.device import dtype_of
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps
from tests.tiny import draw_film

IMAGES = {True: 16, False: 512}
SIDE = {True: 64, False: 512}
CANVAS = {True: 64, False: 256}
READ_BATCH = 64
SECONDS = {True: 0.5, False: 4.0}  # of reading from the cache, which is quick
STEPS = 4
NEEDS = {True: 1.0, False: 15.0}  # seconds of a model's steps, about


def measure(card: Card, results: Results, more: dict[str, str]) -> None:
    """Reading alone, then steps that read."""
    with tempfile.TemporaryDirectory(prefix="dino-x-gpu-") as place:
        folder = Path(place)
        indexes = {
            "JPEG": jpegs(folder / "jpeg", card.toy), "DICOM": dicoms(folder / "dicom", card.toy),
        }  # fmt: skip
        form = CanvasForm(CANVAS[card.toy], 1)
        cached = indexes["JPEG"]
        read = partial(reading, results, form=form)
        step = partial(waiting, card, results, form=form)

        def store() -> CanvasStore:
            return store_of(folder / "cache", cached, form)

        results.each(
            {
                f"reading {name}": partial(read, name, index, store=None)
                for name, index in indexes.items()
            }
        )
        cache = "the disk cache"
        results.attempt(
            f"reading {cache}",
            lambda: read(cache, cached, store=store(), seconds=SECONDS[card.toy]),
        )
        results.each(
            {
                f"steps from {name}": partial(step, name, index, store=None)
                for name, index in indexes.items()
            },
            needs=NEEDS[card.toy],
        )
        results.attempt(
            f"steps from {cache}", lambda: step(cache, cached, store=store()), needs=NEEDS[card.toy]
        )


def pictures(toy: bool) -> Iterator[np.ndarray]:
    """Films with some noise, so that they compress as real ones do."""
    rng = np.random.default_rng(0)
    for _ in range(IMAGES[toy]):
        yield draw_film(rng, SIDE[toy], SIDE[toy])


def jpegs(folder: Path, toy: bool) -> Index:
    """Grey JPEG files."""
    folder.mkdir()
    for number, pixels in enumerate(pictures(toy)):
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=90)
    return build_index([folder], verify="headers")


def dicoms(folder: Path, toy: bool) -> Index:
    """Grey DICOM files of 16 bits, not compressed."""
    folder.mkdir()
    for number, pixels in enumerate(pictures(toy)):
        write_dicom(folder / f"{number:04d}.dcm", pixels.astype(np.uint16) * 16)
    return build_index([folder], verify="headers")


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    """A radiograph of 12 bits in 16."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    film.SOPClassUID, film.SOPInstanceUID = (
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID,
    )  # fmt: skip
    film.Modality, film.PhotometricInterpretation, film.SamplesPerPixel = "DX", "MONOCHROME2", 1
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = pixels.tobytes()
    pydicom.dcmwrite(path, film, enforce_file_format=True)


def store_of(folder: Path, index: Index, form: CanvasForm) -> CanvasStore:
    """The disk cache of some images."""
    return CanvasStore(folder, keys_of(index.rows, form), form, limit_bytes=10**10)


def reading(
    results: Results, name: str, index: Index, *, form: CanvasForm, store: CanvasStore | None,
    seconds: float = 0.0,
) -> None:  # fmt: skip
    """Images a second to canvases; a cache is filled before."""
    workers = os.cpu_count() or 1
    rows = np.arange(len(index))
    batches = [rows[at : at + READ_BATCH] for at in range(0, len(rows), READ_BATCH)]
    with Loader(index, form, cache_bytes=0, workers=workers, store=store) as loader:
        if store is not None:
            list(loader.prefetch(batches))
        done, started = 0, time.perf_counter()
        while not done or time.perf_counter() - started < seconds:
            done += sum(len(canvases.pixels) for canvases in loader.prefetch(batches))
        rate = done / (time.perf_counter() - started)
    results.found(f"reading from {name} to canvases of {form.side}, {workers} threads",
                  f"{rate:,.3g} images/s", images_per_second=rate)  # fmt: skip


class Waited:
    """A loader, and the seconds that were waited for it."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.seconds = loader, 0.0

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """What the loader gives."""
        coming = iter(self.loader.prefetch(batches))
        while True:
            started = time.perf_counter()
            canvases = next(coming, None)
            self.seconds += time.perf_counter() - started
            if canvases is None:
                return
            yield canvases


def waiting(
    card: Card, results: Results, name: str, index: Index, *, form: CanvasForm,
    store: CanvasStore | None,
) -> None:  # fmt: skip
    """Whole steps that read their images, and how much of them is waiting for images."""
    scale = TOY if card.toy else CARD
    model, batch = scale.models[0], min(scale.batch, len(index))
    overrides = scale.settings | {
        "preset": "dinov3", "model.name": model, "train.steps": 100, "health.every": 0,
        "train.effective_batch": batch, "train.micro_batch": max(1, batch // 4),
        "loss.centering": "sinkhorn",
    }  # fmt: skip
    if not card.has_bf16:
        overrides["train.precision"] = "fp32"
    options = resolve(overrides, Facts(len(index))).options
    cutter = Cutter(options, [0.5] * 3, [0.25] * 3, card.device, dtype_of(options.train.precision))
    workers = os.cpu_count() or 1
    with Loader(index, form, cache_bytes=0, workers=workers, store=store) as loader:
        source = Waited(loader)
        steps = Steps(options, source, len(index), cutter)
        turn = one_step(steps)
        turn()
        source.seconds = 0.0
        took = sum(card.seconds(turn) for _ in range(STEPS))
    share, rate = source.seconds / took, STEPS * batch / took
    results.found(
        f"steps of {TITLES[model]} that read from {name}: images/s, share that waits for images",
        f"{rate:,.3g} images/s, {share:.0%}", images_per_second=rate, waits=share,
    )  # fmt: skip
