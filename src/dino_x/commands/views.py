"""``dino-x views``: what a network will see of some images, as one picture.

An image is shown as evaluation sees it, then as the crops of a step of training, with all that is
done to them; masked patches of the global crops are darkened. The crops are cut by the code of
training, from the options of the run. No name is in the picture: images have numbers.

C channels, S side of a square in pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from dino_x.config.options import Options
from dino_x.config.resolve import Facts, patch_size_of, resolve
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index
from dino_x.data.loading.loader import Loader
from dino_x.errors import UserError
from dino_x.files import check_place, write_atomically
from dino_x.losses.ranks import ALONE
from dino_x.runs.start import inherited
from dino_x.training.images import early_checks, images_of
from dino_x.training.prepare import canvas_form, check_patches, check_stains
from dino_x.training.step.seen import Seen, seen_of
from dino_x.views.extra import checked_extra

COUNT = 16
CELL, GAP, LINE = 128, 4, 16  # pixels of a picture, between pictures, and of a line of text
MOST_LOCALS = 4  # local crops of an image that are shown
MOST_WHITE, MOST_BLACK = 0.5, 0.98  # shares of an image beyond which its window is doubtful
FLAT = 0.1  # or whose values, but for a twentieth on either side, span less of black to white
INK, PAPER = (20, 20, 20), (206, 214, 224)  # neither black nor white


def draw_views(overrides: Mapping[str, Any], out: Path, console: Console) -> Path:
    """Draw what a run with these options will see of 16 of its images.

    Args:
        overrides: what the user set, as ``section.key`` values, as for ``pretrain``.
        out: the picture, ``.png``.
        console: where to say what happens.

    Raises: UserError for images or options that cannot be used, and a file that exists.
    """
    check_out(out)
    if not overrides.get("data.paths"):
        raise UserError("nothing to look at; name a folder of images with --data")
    early = early_checks({"data.verify": "headers", **overrides}, ALONE)
    index, _, _ = images_of(early, console)
    facts = Facts(len(index), inherited(overrides), early.patch_size)
    options = resolve(overrides, facts).options
    patch = early.patch_size or patch_size_of(options.model)
    check_patches(options, patch, patch)
    chosen = np.unique(np.linspace(0, len(index) - 1, COUNT).round().astype(int))
    form = canvas_form(options, index, early.channels)
    check_stains(options, form)
    with Loader(
        index,
        form,
        cache_bytes=0,
        workers=options.data.workers,
    ) as loader:
        canvases = loader.batch(chosen)
    channels = canvases.pixels.shape[1]
    extra = checked_extra(options, channels, torch.device("cpu"), torch.float32)
    views = seen_of(options, canvases, early.channels, patch, extra)
    rows = [index.rows[position] for position in chosen]
    write_atomically(out, lambda path: picture(views, rows, options).save(path, format="png"))
    say(views, rows, index, out, console)
    return out


def check_out(out: Path) -> None:
    """Refuse a place for the picture. Raises: UserError."""
    if out.suffix != ".png":
        raise UserError(f"--out {out} must end in .png, as in views.png")
    if out.is_file():
        raise UserError(f"{out} exists; remove it, or name another file with --out")
    check_place(out)


def picture(views: Seen, rows: Sequence[ImageRef], options: Options) -> Image.Image:
    """All of it as a picture, two images a line."""
    locals_ = min(MOST_LOCALS, views.local_nVCSS.shape[1])
    titles = ["evaluation", "global 1", "global 2", *(f"local {i + 1}" for i in range(locals_))]
    block = len(titles) * (CELL + GAP) + 3 * GAP
    lines = -(-len(rows) // 2)
    height = LINE + GAP + lines * (CELL + LINE + 2 * GAP)
    sheet = Image.new("RGB", (2 * block, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for half in range(2):
        for column, title in enumerate(titles):
            pen.text((half * block + GAP + column * (CELL + GAP), GAP), title, INK, font)
    for number, ref in enumerate(rows):
        left = (number % 2) * block + GAP
        top = LINE + GAP + (number // 2) * (CELL + LINE + 2 * GAP)
        for column, tile in enumerate(tiles(views, number, locals_, options.data.slices == 3)):
            sheet.paste(tile, (left + column * (CELL + GAP), top))
        pen.text((left, top + CELL + 1), caption(number, ref, views), INK, font)
    return sheet


def tiles(views: Seen, number: int, locals_: int, slices: bool) -> list[Image.Image]:
    """The pictures of an image, in the order of the titles."""
    shown = [
        views.whole_nCSS[number],
        *views.shaded_nVCSS[number],
        *views.local_nVCSS[number, :locals_],
    ]
    return [tile(values_CSS, slices) for values_CSS in shown]


def tile(values_CSS: np.ndarray, slices: bool) -> Image.Image:
    """One picture; of slices the middle one, of many channels the first."""
    grey = values_CSS[1] if slices else values_CSS[0]
    shown = values_CSS.transpose(1, 2, 0) if len(values_CSS) == 3 and not slices else grey
    pixels = (255 * np.clip(shown, 0, 1)).round().astype(np.uint8)
    return Image.fromarray(pixels).convert("RGB").resize((CELL, CELL), Image.Resampling.BILINEAR)


def caption(number: int, ref: ImageRef, views: Seen) -> str:
    """What an image is, and how much of it is black and white."""
    black, white = saturated(views, number)
    what = f"{ref.modality or ref.format or ''} {ref.width} x {ref.height} px".strip()
    return f"{number + 1}: {what}, {black:.0%} black, {white:.0%} white"


def saturated(views: Seen, number: int) -> tuple[float, float]:
    """The shares of an image, as evaluation sees it, that are black and white."""
    whole_CSS = views.whole_nCSS[number]
    return float((whole_CSS <= 0).mean()), float((whole_CSS >= 1).mean())


def say(views: Seen, rows: Sequence[ImageRef], index: Index, out: Path, console: Console) -> None:
    """Which images these are, and those whose window is doubtful."""
    doubtful = []
    for number, ref in enumerate(rows):
        black, white = saturated(views, number)
        low, high = np.quantile(views.whole_nCSS[number], (0.05, 0.95))
        if white > MOST_WHITE or black > MOST_BLACK or high - low < FLAT:
            doubtful.append(number + 1)
        frame = f", frame {ref.frame}" if ref.frame else ""
        console.print(f"{number + 1:>7}   {ref.path}{frame}", highlight=False, soft_wrap=True)
    if doubtful:
        listed = ", ".join(map(str, doubtful))
        console.print(
            f"{'doubtful':<10}{listed}: nearly all black, half white, or flat; see dino-x options"
            " windows, and data.modality",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    console.print(
        f"{'written':<10}{out}: {len(rows)} of {len(index):,} images", highlight=False,
        soft_wrap=True,
    )  # fmt: skip
