"""Patch features of a few fixed images over the course of training, for the run's report.

They are looked at in ``report.html``. Nothing of them flows back into training: the teacher is only
read, and which images and which steps are looked at follows from the options alone.
F: fixed images, C: channels, S: side of a global crop, N: patches of it, D: features, P: side of a
patch in pixels, k: shifts along each axis.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dino_x.config.options import DataOptions, Options
from dino_x.data.index.conditions import columns_of
from dino_x.data.preparation import whole_canvases
from dino_x.distributed.sharding import is_sharded
from dino_x.files import write_atomically
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.model.teacher import Network
from dino_x.randomness import generator
from dino_x.training.step.batch_plan import Cutter, ImageSource
from dino_x.training.step.seen import seen_of

IMAGES = 6
TIMES = 6
RATIO = 2  # between the steps: as much happens from step 10 to 20 as from 300 to 600
LARGEST_GRID = 32  # patches a side that are kept; finer grids are averaged down to it
SHOWN_GRID = 14  # patches a side below which the patches of shifted images are put between them
MOST_SHIFTS = 4  # along each axis
LOCALS = 4  # local crops of an image that are kept
LARGEST_CROP = 256  # pixels a side of a crop that is kept
PATTERN = "step-{:08d}.npz"


@dataclass
class Snapshots:
    """Writes ``RUN/snapshots/step-*.npz`` at a few steps of a run.

    A file holds ``features`` (float16 [F, rows, columns, D], the teacher's patch tokens after the
    final norm, see `dense_grid`), ``aspect`` (float32 [F], height / width of the images themselves)
    and, unless ``report.images`` is off, ``images`` (uint8 [F, C, S, S]). At most 13 MB of features
    for D = 1,024. The first one also has what the network sees in training: ``global_crops``, with
    masked patches darkened, and ``local_crops`` (uint8 [F, V, C, S, S]).

    Attributes:
        folder: the folder of the snapshots.
        options: the resolved options of the run.
        images: the number of images to choose from.
    """

    folder: Path
    options: Options
    images: int

    def take(
        self, done: int, teacher: Network, source: ImageSource, cutter: Cutter, ranks: Ranks = ALONE
    ) -> None:
        """Write the snapshot after ``done`` steps, if there is to be one; by one process.

        A disk that is full or read-only costs the report a picture and is left to the checkpoint
        to complain about: it never stops a run.
        """
        steps = self.options.train.steps
        assert steps is not None
        takes_part = ranks.rank == 0 or is_sharded(teacher)  # each rank has a shard of it
        wanted = self.options.report.snapshots and takes_part
        if not wanted or done not in snapshot_steps(steps):
            return
        content = self.content(teacher, source, cutter)
        if done == 0 and "images" in content:
            content |= self.crops(source, cutter, teacher.backbone.patch_size)
        if ranks.rank > 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.folder / PATTERN.format(done), lambda path: save_arrays(path, content)
            )
        except OSError:
            return

    @torch.no_grad()
    def content(
        self, teacher: Network, source: ImageSource, cutter: Cutter
    ) -> dict[str, np.ndarray]:
        """The arrays of one snapshot; images go through the network one by one."""
        chosen = fixed_images(self.options.train.seed, self.images)
        size = self.options.views.global_size
        features, squares, aspects = [], [], []
        for canvases in source.prefetch([np.array([index]) for index in chosen]):
            pixels_1CSS = canvases.pixels.to(cutter.device, cutter.dtype)
            square_1CSS = whole_canvases(pixels_1CSS, canvases.hounsfield, size)
            normalised_1CSS = cutter.normalised(square_1CSS)
            shifted = shifted_squares(normalised_1CSS, teacher.backbone.patch_size)
            _, patches_BND = teacher(shifted, None, None)
            features.append(as_stored(dense_grid(patches_BND)))
            squares.append((255 * square_1CSS[0]).round().to(torch.uint8).cpu().numpy())
            aspects.append(float(canvases.aspect[0]))
        content = {"features": np.stack(features), "aspect": np.array(aspects, np.float32)}
        if self.options.report.images and not may_show_names(self.options.data):
            content["images"] = np.stack(squares)
        return content

    def crops(self, source: ImageSource, cutter: Cutter, patch: int) -> dict[str, np.ndarray]:
        """The crops of the fixed images in a step that has just these, as the network sees them."""
        chosen = fixed_images(self.options.train.seed, self.images)
        (canvases,) = source.prefetch([chosen])
        seen = seen_of(self.options, canvases, len(cutter.mean), patch, cutter.extra)
        return {
            "global_crops": as_bytes(seen.shaded_nVCSS),
            "local_crops": as_bytes(seen.local_nVCSS[:, :LOCALS]),
        }


def may_show_names(data: DataOptions) -> bool:
    """Whether a run may train on photographs of slides' labels or pictures of screens.

    These can show a patient's name, which must not reach a report.
    """
    chosen = data.where is not None and "kind" in columns_of(data.where)
    return chosen or bool({"slide_label", "screenshot", "all"} & set(data.take))


def snapshot_steps(steps: int) -> list[int]:
    """Numbers of finished steps after which there is a snapshot: 0, and up to the last by doubling.

    >>> snapshot_steps(120)
    [0, 8, 15, 30, 60, 120]
    >>> snapshot_steps(3)
    [0, 1, 2, 3]
    """
    return sorted({0} | {round(steps / RATIO**k) for k in range(TIMES - 1)})


def fixed_images(seed: int, images: int) -> np.ndarray:
    """The positions of the images that are looked at, in order, from the seed alone."""
    count = min(IMAGES, images)
    return np.sort(generator(seed, 0, "snapshots").choice(images, count, replace=False))


def shifted_squares(square_1CSS: Tensor, patch: int) -> Tensor:
    """A square and, where its patches are few, k * k copies of it moved by parts of a patch.

    A small network sees a 64 px image as 4 x 4 patches of 16 px, too few to recognise anything in.
    Moved by a quarter of a patch along each axis, each patch still sees 16 px at the size it was
    trained on, and the copies together have a value every 4 px.

    Args:
        square_1CSS: normalised; its border is repeated where a move uncovers it.
        patch: P.

    Returns: [k * k, C, S, S], row by row: the copy ``y * k + x`` shows what lies
        ``(y - (k - 1) / 2) * P / k`` below, and the same for x to the right.
    """
    size = square_1CSS.shape[-1]
    k = min(MOST_SHIFTS, patch, -(-SHOWN_GRID * patch // size))
    if k <= 1:
        return square_1CSS
    padded = functional.pad(square_1CSS, (patch,) * 4, mode="replicate")
    starts = [patch + round((i - (k - 1) / 2) * patch / k) for i in range(k)]
    copies = [padded[..., y : y + size, x : x + size] for y in starts for x in starts]
    return torch.cat(copies)


def dense_grid(patches_BND: Tensor) -> Tensor:
    """Patch tokens of `shifted_squares` in their places: [rows, columns, D]."""
    copies, patches, features = patches_BND.shape
    k, side = round(copies**0.5), round(patches**0.5)
    places = patches_BND.reshape(k, k, side, side, features).permute(2, 0, 3, 1, 4)
    return places.reshape(side * k, side * k, features)


def as_stored(grid_YXD: Tensor) -> np.ndarray:
    """A grid of at most `LARGEST_GRID` places a side, in float16."""
    if len(grid_YXD) > LARGEST_GRID:
        pooled = functional.adaptive_avg_pool2d(grid_YXD.permute(2, 0, 1).float(), LARGEST_GRID)
        grid_YXD = pooled.permute(1, 2, 0)
    largest = torch.finfo(torch.float16).max
    return grid_YXD.clamp(-largest, largest).half().cpu().numpy()


def as_bytes(crops_FVCSS: np.ndarray) -> np.ndarray:
    """Crops in [0, 1] as uint8, no larger than `LARGEST_CROP`."""
    side = crops_FVCSS.shape[-1]
    if side > LARGEST_CROP and crops_FVCSS.size:
        rows = torch.from_numpy(crops_FVCSS).flatten(0, 1).float()
        smaller = functional.interpolate(rows, (LARGEST_CROP,) * 2, mode="area")
        crops_FVCSS = smaller.unflatten(0, crops_FVCSS.shape[:2]).numpy()
    return np.rint(255 * np.clip(crops_FVCSS, 0, 1)).astype(np.uint8)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an .npz under exactly this name (``np.savez`` adds a suffix to names of its own)."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
