"""``dino-x embed``: the features of some images as a table, part by part, so that it can continue.

Next to the table lies ``OUT.parts`` while it is made: a small Parquet file for each stretch of
images, and the grid of patches so far. The same command continues behind the last part. At the end
the parts become the table, and the folder is removed.

N images, M that can be decoded, D features of a token, P x P patches.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from dino_x.commands.embed import Tokens, encoder_of
from dino_x.commands.feature_files import (
    GRID_TYPE,
    NUMBER_IN_CSV,
    Block,
    GridFile,
    Part,
    read_parts,
    write_part,
    write_table,
)
from dino_x.commands.feature_identity import fingerprint, hash_of_images
from dino_x.data.image import ImageRef, Unreadable
from dino_x.data.index.content import content_keys
from dino_x.data.index.index import Index, Skipped, build_index, folders_of, write_skipped
from dino_x.data.readers.registry import read
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.member import file_of
from dino_x.errors import UserError
from dino_x.evaluation.backbone import LoadedModel
from dino_x.evaluation.embed import Encoder, ImagePreparation, prepared
from dino_x.evaluation.seen import trained_on
from dino_x.files import check_place, read_json, write_atomically, write_json
from dino_x.progress import progress_bar
from dino_x.runs.folder import reading_of
from dino_x.runs.lock import RunLock

PART_SECONDS = 20.0  # of work that an interruption may cost
PART_BYTES = 64 * 2**20  # of features that are held before they are written
ABOUT = "about.json"
LOOKED_AT = 1000  # images of which it is said whether the model was trained on them


@dataclass(frozen=True)
class Place:
    """Where features go.

    Attributes:
        table: OUT, ``.parquet`` or ``.csv``.
        grid: the ``.npy`` file for patches, or None.
    """

    table: Path
    grid: Path | None

    @property
    def parts(self) -> Path:
        """The folder of what is done so far."""
        return self.table.with_name(self.table.name + ".parts")

    @property
    def skipped(self) -> Path:
        """The list of what has no row."""
        return self.table.with_name(self.table.stem + ".skipped.csv")

    def check(self) -> None:
        """Refuse files that exist or cannot be written, before any work. Raises: UserError."""
        if self.table.suffix not in (".parquet", ".csv"):
            raise UserError(
                f"--out {self.table} ends in neither .parquet nor .csv; name a file such as"
                " features.parquet"
            )
        if self.grid is not None and self.grid.suffix != ".npy":
            raise UserError(f"--patches {self.grid} must end in .npy, as in patches.npy")
        for path in (self.table, self.grid):
            if path is None:
                continue
            if path.is_file():
                raise UserError(f"{path} exists; remove it, or name another file")
            check_place(path)


@dataclass(frozen=True)
class Job:
    """What is to be embedded, by what.

    Attributes:
        name: of the model.
        model: the network and its preparation of images.
        found: the N images.
        encoder: gives flat features.
        tokens: how to take these apart.
        folders: that the images lie in, those inside others first.
        place: where features go.
        batch_size: images that go through the network together.
    """

    name: str
    model: LoadedModel
    found: Index
    encoder: Encoder
    tokens: Tokens
    folders: Sequence[Path]
    place: Place
    batch_size: int

    def place_of(self, image: ImageRef) -> tuple[str, str]:
        """The path of an image below its folder, and the folder."""
        for folder in self.folders:
            if image.path.is_relative_to(folder):
                return image.path.relative_to(folder).as_posix(), str(folder)
        return image.path.name, str(image.path.parent)

    def image_bytes(self) -> int:
        """Bytes of an image in parts, table and grid."""
        numbers = 2 * self.tokens.width
        in_table = numbers * (NUMBER_IN_CSV if self.place.table.suffix == ".csv" else 4)
        grid = 0
        if self.place.grid is not None:
            grid = self.tokens.side**2 * self.tokens.width * GRID_TYPE.itemsize
        return 4 * numbers + in_table + grid

    def about(self) -> dict[str, Any]:
        """What features depend on: those of another model or of other images are not mixed."""
        return {
            "model": fingerprint(self.model),
            "images": hash_of_images(self.found.rows),
            "patches": self.place.grid is not None,
        }


def write_features(
    name: str,
    model: LoadedModel,
    paths: Sequence[Path],
    out: Path,
    console: Console,
    *,
    grid: Path | None = None,
    index: Path | None = None,
    where: str | None = None,
    batch_size: int = 64,
) -> Path:
    """Write a table with a row an image: its path, frame and patient key, and its features.

    Args:
        name: of the model; a RUN knows how its images were read.
        model: the network and its preparation of images.
        paths: folders, files or indexes.
        out: the table, ``.parquet`` or ``.csv``. What an earlier call left half done is continued.
        console: where to say what happens.
        grid: a ``.npy`` file for the patch features, float16 [M, P, P, D], in the table's order.
        index: an index of the data, whose files are not opened again to be listed.
        where: a condition on the images.
        batch_size: images that go through the network together.

    Returns: the table.

    Raises: UserError for files that exist or cannot be written, for no images, and for half-done
        features of another model or of other images.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is less than 1")
    place = Place(out, grid)
    place.check()
    with progress_bar(console, "reading headers") as progress:
        found = build_index(
            paths,
            verify="headers",
            reading=reading_of(name),
            kept_in=index,
            where=where,
            take=["all"],
            on_progress=progress,
        )
    encoder, tokens = encoder_of(name, model, grid=grid is not None)
    folders = sorted(folders_of(paths), key=lambda folder: -len(folder.parts))
    job = Job(name, model, found, encoder, tokens, folders, place, batch_size)
    lock = RunLock(place.parts)
    try:
        place.parts.mkdir(exist_ok=True)
        lock.take()
        parts = parts_before(job)
        announce(job, parts, console)
        parts = embed_rest(job, parts, console)
        finish(job, parts, console)
    except OSError as error:
        raise UserError(
            f"{place.parts} cannot be written ({error.strerror}); make room, and the same command"
            " continues"
        ) from error
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            place.parts.rmdir()  # only if nothing is in it
    shutil.rmtree(place.parts, ignore_errors=True)
    return out


def parts_before(job: Job) -> list[Part]:
    """What an earlier call has done; the first call notes what it is about.

    Raises: UserError if that is of another model or of other images.
    """
    folder, about = job.place.parts, job.about()
    kept = read_json(folder / ABOUT) if (folder / ABOUT).is_file() else None
    if kept is not None and kept != about:
        other = next((key for key in about if kept.get(key) != about[key]), "model")
        what = {
            "model": "another model",
            "images": "other images (files were added, removed or changed)",
            "patches": "the same with other --patches",
        }[other]
        raise UserError(
            f"{folder} holds the first features of {what}; remove it to start anew, or choose"
            " another --out"
        )
    parts = read_parts(folder)
    if job.place.grid is not None and not grid_file(job).holds(sum(part.kept for part in parts)):
        parts = []
    todo = len(job.found) - (parts[-1].end if parts else 0)
    needed = todo * job.image_bytes()
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{needed / 1e9:.1f} GB are needed for the features of {todo:,} images, and"
            f" {free / 1e9:.1f} GB are free at {folder}; make room, or leave out --patches"
        )
    write_json(folder / ABOUT, about)
    return parts


def announce(job: Job, parts: Sequence[Part], console: Console) -> None:
    """What is about to be done."""
    found, preparation = job.found, job.model.preparation
    size, tokens = preparation.image_size, job.tokens
    seen = seen_in_words(job.name, found.rows)
    skipped = len(found.skipped)
    lines = {
        "images": f"{len(found):,}{f', {skipped:,} files skipped' if skipped else ''}{seen}",
        "model": f"{job.name}: squares of {size} px, {tokens.width} features a token",
    }
    if parts:
        lines["continued"] = f"after {parts[-1].end:,} images that were done before"
    for name, line in lines.items():
        console.print(f"{name:<10}{line}", highlight=False, soft_wrap=True, markup=False)


def seen_in_words(name: str, rows: Sequence[ImageRef]) -> str:
    """Whether a run was trained on these images; nothing for what is no run or kept no keys."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).round().astype(int))
    paths = [rows[i].path for i in chosen]
    keys = trained_on(name)
    if keys is None or any(is_remote(file_of(path)) for path in paths):
        return ""
    of = content_keys(paths)
    count = sum(of.get(path) in keys for path in paths)
    if not count:
        return "; the model was trained on none of them"
    looked = "" if len(paths) == len(rows) else f" of {len(paths):,} that were looked at"
    return f"; the model was trained on {count:,}{looked}"


def embed_rest(job: Job, parts: Sequence[Part], console: Console) -> list[Part]:
    """Embed what no part has; the parts with those that came new. Raises: OSError."""
    parts = list(parts)
    grid = None
    if job.place.grid is not None:
        grid = grid_file(job)
        grid.begin(sum(part.kept for part in parts))
    first = parts[-1].end if parts else 0
    try:
        with progress_bar(console, "embedding", done_before=first) as progress:
            for start, end, positions, flat_MF in stretches(job, first, progress):
                block = block_of(job, positions, flat_MF)
                if grid is not None and block.grid_MPPD is not None:
                    grid.add(block.grid_MPPD)
                skipped = reasons(job, sorted(set(range(start, end)) - set(positions)))
                parts.append(write_part(job.place.parts, start, end, block, skipped))
        if grid is not None:
            grid.finish(sum(part.kept for part in parts))
    finally:
        if grid is not None:
            grid.close()
    return parts


def grid_file(job: Job) -> GridFile:
    """The patches so far."""
    return GridFile(job.place.parts, job.tokens.side, job.tokens.width)


def stretches(
    job: Job, first: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[int, int, list[int], np.ndarray]]:
    """Features of the images from a position on, as much at a time as makes a part.

    Yields: where it starts and ends, the positions of the images that can be decoded, and their
    flat features [M, F].
    """
    rows, form = job.found.rows, job.encoder.form
    seeing = ImagePreparation(job.model.preparation.windows, rows)
    width = job.tokens.width
    per_image = width * (2 if job.place.grid is None else 2 + job.tokens.side**2)
    start = end = first
    positions: list[int] = []
    waiting: list[np.ndarray] = []
    since = time.monotonic()
    with torch.no_grad():
        batches = prepared(rows[first:], {form}, job.batch_size, seeing=seeing)
        for here, images in batches:
            if here:
                waiting.append(job.encoder.features(images[form]).float().cpu().numpy())
                positions += [first + position for position in here]
            end = min(end + job.batch_size, len(rows))
            progress(end, len(rows))
            held = sum(array.nbytes for array in waiting)
            late = time.monotonic() - since > PART_SECONDS
            if held > PART_BYTES or late or end == len(rows):
                flat_MF = np.concatenate([np.empty((0, per_image), np.float32), *waiting])
                yield start, end, positions, flat_MF
                start, positions, waiting, since = end, [], [], time.monotonic()


def block_of(job: Job, positions: Sequence[int], flat_MF: np.ndarray) -> Block:
    """The features of some images beside what these are."""
    images = [job.found.rows[position] for position in positions]
    cls_MD, mean_MD, grid_MPPD = job.tokens.split(flat_MF)
    if grid_MPPD is not None:
        grid_MPPD = grid_MPPD.astype(GRID_TYPE)
    return Block(images, [job.place_of(image) for image in images], cls_MD, mean_MD, grid_MPPD)


def reasons(job: Job, positions: Sequence[int]) -> list[tuple[str, str]]:
    """Path and reason of images that cannot be decoded."""
    return [(str(job.found.rows[i].path), why_unreadable(job.found.rows[i])) for i in positions]


def why_unreadable(image: ImageRef) -> str:
    """Why an image cannot be decoded."""
    try:
        read(image)
    except Unreadable as unreadable:
        return str(unreadable)
    return "could not be decoded at first"


def finish(job: Job, parts: Sequence[Part], console: Console) -> None:
    """Make the table of the parts, and say where everything is. Raises: OSError, UserError."""
    place, kept = job.place, sum(part.kept for part in parts)
    left_out = [Skipped(Path(path), why) for part in parts for path, why in part.skipped]
    if not kept:
        raise UserError(
            f"none of {len(job.found):,} images can be decoded; {left_out[0].path}:"
            f" {left_out[0].reason}"
        )
    left_out = [*job.found.skipped, *left_out]
    if left_out:
        write_atomically(place.skipped, lambda file: write_skipped(left_out, file))
    if place.grid is not None:
        shutil.move(grid_file(job).path, place.grid)
    write_table(parts, place.table)
    width, side = job.tokens.width, job.tokens.side
    lines = [f"{place.table}, {kept:,} images: cls and mean_patch, {width} numbers each"]
    if place.grid is not None:
        lines.append(f"{place.grid}, float16 [{kept}, {side}, {side}, {width}], in the same order")
    if left_out:
        lines.append(f"{place.skipped}, {len(left_out):,} files without features, and why")
    for number, line in enumerate(lines):
        title = "" if number else "written"
        console.print(f"{title:<10}{line}", highlight=False, soft_wrap=True, markup=False)
