"""The images that a report looks at with the run's model: a bounded sample of the run's own."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dino_x.data.image import DEFAULT, ImageRef, Reading, Unreadable
from dino_x.data.index.catalog import sources_of
from dino_x.data.index.finding import Candidate
from dino_x.data.index.headers import Record, scan
from dino_x.data.index.index import build_index
from dino_x.data.index.large import index_of, open_large
from dino_x.data.index.masks import masks_among
from dino_x.data.index.rows import Rows
from dino_x.data.preparation import normalised, resized_squares, shows_grey, to_square, windowed
from dino_x.data.readers import registry
from dino_x.data.storage.member import as_path
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.model.pretrained import Preparation
from dino_x.randomness import generator
from dino_x.report.maps import cls_attention, token_shares

SAMPLE = 400  # images among which neighbours are looked for
BATCH = 25
ARCHIVES = 4  # that are looked through for the sample, where no index has done it
SECONDS = 15.0  # for reading and embedding; the sample is the images that are done by then

# Kinds of images that a page never shows: they may have a name in them.
NEVER_SHOWN = ("slide_label", "screenshot")

GONE = (
    "The run's images are not where they were (data.paths in its config.yaml; a relative path"
    " counts from the folder the run was started in)."
)
UNREADABLE = "None of the run's images can be read any more."


@dataclass(frozen=True)
class EmbeddedImages:
    """Images as the network sees them, with their features.

    Attributes:
        squares: uint8 [C, S, S] each.
        aspects: height / width of each image itself.
        features_ND: float32, CLS tokens.
        refs: what each image is; paths are never shown.
    """

    squares: list[np.ndarray]
    aspects: list[float]
    features_ND: np.ndarray
    refs: list[ImageRef]

    @property
    def patients(self) -> list[str | None]:
        """A hash that is the same for all images of a patient, or None, of each."""
        return [ref.patient for ref in self.refs]


def sample_refs(
    paths: Sequence[str],
    seed: int,
    count: int = SAMPLE,
    reading: Reading = DEFAULT,
    where: str | None = None,
    take: Sequence[str] = (),
) -> list[ImageRef]:
    """Draw at most ``count`` images of the run's data, from the seed alone.

    Images of kinds that the run does not take are not drawn. Photographs of a slide's label, which
    may show a name, and pictures of screens never are.

    Only the files that are drawn are opened, unless ``where`` asks for the headers of all. From a
    file with many images one image is drawn.

    Raises: UserError if a path does not exist any more, or nothing in it can be read. The message
        may be shown in the page: it names no path.
    """
    folders = [as_path(path) for path in paths]
    rng = generator(seed, 0, "report sample")
    try:
        rows = _rows_of(folders, reading, where, take)
        if rows is not None:
            return _some_rows(rows, rng, count)
        _, taken, others, _ = sources_of(folders)
    except UserError as error:  # its message names the path and files beside it
        raise UserError(GONE) from error
    files: list[Record | Candidate] = [*(record for record in taken if record.refs), *others]
    if "mask" not in take and "all" not in take:
        masks = masks_among([file.path for file in files])
        files = [file for place, file in enumerate(files) if place not in masks]
    if not files:
        raise UserError(GONE)
    refs: list[ImageRef] = []
    archives = 0
    for position in rng.permutation(len(files)):
        if len(refs) == count:
            break
        file = files[position]
        if isinstance(file, Candidate) and file.is_archive:
            archives += 1
            if archives <= ARCHIVES:
                refs += _some_of(file, reading, rng, max(1, count // ARCHIVES), take)
        else:
            refs += _one_of(file, reading, rng, take)
    if not refs:
        raise UserError(UNREADABLE)
    return refs


def _rows_of(
    paths: Sequence[Path], reading: Reading, where: str | None, take: Sequence[str]
) -> Sequence[ImageRef] | None:
    """The run's images, of a large index or where a condition asks for headers; else None."""
    large, _ = open_large(paths)
    if large is None and where is None:
        return None
    if large is None:
        index = build_index(paths, verify="headers", reading=reading, where=where, take=take)
    else:
        index, _, _ = index_of(large, take, where)
    if isinstance(index.rows, Rows):
        return index.rows
    return [row for row in index.rows if row.kind not in NEVER_SHOWN]


def _some_rows(rows: Sequence[ImageRef], rng: np.random.Generator, count: int) -> list[ImageRef]:
    """Draw at most ``count`` images, and none that a page may not show."""
    if not isinstance(rows, Rows):
        return [rows[position] for position in rng.permutation(len(rows))[:count]]
    drawn = rng.choice(len(rows), min(len(rows), 2 * count), replace=False)
    refs = (rows[position] for position in drawn.tolist())
    return list(islice((ref for ref in refs if ref.kind not in NEVER_SHOWN), count))


def _shown(refs: Sequence[ImageRef], take: Sequence[str]) -> list[ImageRef]:
    """The images of kinds that the run takes and a page may show."""
    wanted = [ref for ref in refs if ref.kind is None or ref.kind in take or "all" in take]
    return [ref for ref in wanted if ref.kind not in NEVER_SHOWN]


def _one_of(
    file: Record | Candidate,
    reading: Reading,
    rng: np.random.Generator,
    take: Sequence[str],
) -> list[ImageRef]:
    """Draw one image of a file; none if it cannot be read."""
    try:
        every = file.refs if isinstance(file, Record) else registry.refs(file.path, reading)
    except Unreadable:
        return []
    found = _shown(every, take)
    if not found:
        return []
    return [found[int(rng.integers(len(found)))]]


def _some_of(
    file: Candidate,
    reading: Reading,
    rng: np.random.Generator,
    count: int,
    take: Sequence[str],
) -> list[ImageRef]:
    """Draw at most ``count`` images of an archive; all its headers are read."""
    records = next(iter(scan([file], reading, 1))).records
    files = [found for record in records if (found := _shown(record.refs, take))]
    chosen = [files[position] for position in rng.permutation(len(files))[:count]]
    return [found[int(rng.integers(len(found)))] for found in chosen]


def load_model(folder: Path, device: str) -> tuple[nn.Module, Preparation]:
    """The run's model, which returns its attentions, and the preparation of its images.

    Raises: UserError if it cannot be loaded; the message names no path.
    """
    try:
        backbone = load_backbone(folder, device=device)
    except UserError as error:
        raise UserError("The run's model cannot be loaded; dino-x evaluate says why.") from error
    backbone.model.set_attn_implementation("eager")  # type: ignore[operator] # others keep no weights
    return backbone.model, backbone.preparation


def network_input(
    squares_BCSS: np.ndarray, preparation: Preparation, like: nn.Module
) -> torch.Tensor:
    """Turn uint8 squares into the network's input, resized if they have another side."""
    weight = next(like.parameters())
    pixels = torch.from_numpy(squares_BCSS).to(weight.device, weight.dtype) / 255
    if pixels.shape[-1] != preparation.image_size:
        pixels = resized_squares(pixels, preparation.image_size)
    return normalised(pixels, preparation.mean, preparation.std)


@torch.no_grad()
def look(
    model: nn.Module, preparation: Preparation, refs: Sequence[ImageRef], seconds: float = SECONDS
) -> EmbeddedImages:
    """Read and embed images, batch by batch, until all are done or the time is up.

    Raises: UserError if none of them can be read.
    """
    looked: dict[str, list[Any]] = {"squares": [], "aspects": [], "refs": [], "features": []}
    started = time.monotonic()
    for start in range(0, len(refs), BATCH):
        squares = []
        for ref in refs[start : start + BATCH]:
            try:
                squares.append(square_of(ref, preparation))
            except Unreadable:
                continue
            looked["aspects"].append(ref.height / ref.width)
            looked["refs"].append(ref)
        for group in same_shape(squares):
            pooled = model(pixel_values=network_input(group, preparation, model)).pooler_output
            looked["features"].append(pooled.float().cpu().numpy())
        looked["squares"] += squares
        if time.monotonic() - started > seconds:
            break
    if not looked["squares"]:
        raise UserError(UNREADABLE)
    features = np.concatenate(looked["features"])
    return EmbeddedImages(looked["squares"], looked["aspects"], features, looked["refs"])


def same_shape(squares: list[np.ndarray]) -> list[np.ndarray]:
    """Consecutive squares of the same number of channels as batches, in order."""
    runs = groupby(squares, key=np.shape)
    return [np.stack(list(group)) for _, group in runs]


def square_of(ref: ImageRef, preparation: Preparation) -> np.ndarray:
    """An image in its window as uint8 [C, S, S], as evaluation prepares it. Raises Unreadable."""
    image = registry.read(ref)
    pixels_CHW = windowed(image, preparation.windows)
    channels = preparation.shown_channels
    if channels == 3:
        channels = 1 if shows_grey(pixels_CHW, width=1) else 3
    square_CSS = to_square(pixels_CHW, channels, preparation.image_size)
    return np.rint(255 * square_CSS).astype(np.uint8)


def attentions(
    model: nn.Module, preparation: Preparation, squares: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The attention of the CLS token for each square, [Y, X] each."""
    return [
        cls_attention(model, network_input(square[None], preparation, model)) for square in squares
    ]


def mean_token_shares(
    model: nn.Module, preparation: Preparation, squares: Sequence[np.ndarray]
) -> tuple[float, float]:
    """The share of the CLS token's attention on itself and on registers, mean over squares."""
    inputs = [network_input(square[None], preparation, model) for square in squares]
    shares = np.array([token_shares(model, square) for square in inputs])
    return float(shares[:, 0].mean()), float(shares[:, 1].mean())
