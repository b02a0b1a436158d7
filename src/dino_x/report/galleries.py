"""The pictures of the page: maps over training, attention, neighbours, each with its words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dino_x.errors import UserError
from dino_x.report import looking
from dino_x.report.looking import EmbeddedImages
from dino_x.report.maps import (
    Snapshot,
    nearest,
    patch_similarity,
    pca_colours,
    read_snapshots,
    share_for_half,
)
from dino_x.report.page import Gallery, Picture, PictureRow
from dino_x.report.pictures import colour_map, heat_map, sides, thumbnail
from dino_x.report.run_data import RunData
from dino_x.runs.folder import reading_of

SHOWN = 6  # images whose attention and neighbours are shown
NEIGHBOURS = 5
LEFT_OUT = "Images are left out of this page (--no-images, or report.images=false)."


@dataclass(frozen=True)
class Galleries:
    """The three sections."""

    maps: Gallery
    attention: Gallery
    neighbours: Gallery


def galleries(run: RunData, images: bool, seconds: float) -> Galleries:
    """Everything that is looked at with the run's snapshots and model.

    Args:
        run: the run.
        images: whether the user's images may be in the page.
        seconds: for reading and embedding the sample of images.
    """
    snapshots = read_snapshots(run.snapshots)
    maps = map_gallery(run, snapshots, images)
    if run.model_step is None or not (run.path / "model" / "config.json").is_file():
        no_model = "There is no model yet: the first checkpoint makes it (checkpoint.every)."
        missing = Gallery("", missing=no_model)
        return Galleries(maps, missing, missing)
    try:
        return Galleries(maps, *model_galleries(run, snapshots, images, seconds))
    except UserError as error:
        missing = Gallery("", missing=str(error))
        return Galleries(maps, missing, missing)


def map_gallery(run: RunData, snapshots: Sequence[Snapshot], images: bool) -> Gallery:
    """PCA maps of the fixed images, a strip each."""
    if not snapshots:
        why = (
            "report.snapshots is off in this run"
            if run.settings.get("report.snapshots") is False
            else "it was made by an older version, or has not begun"
        )
        return Gallery("", missing=f"This run kept no patch features: {why}.")
    colours = pca_colours(snapshots)
    last = snapshots[-1]
    strips = []
    for image in range(len(last.features_FYXD)):
        aspect = float(last.aspect_F[image])
        pictures = []
        if images and last.images_FCSS is not None:
            pictures.append(
                Picture(
                    thumbnail(last.images_FCSS[image], aspect),
                    f"Image {image + 1}", "image", sides(aspect),
                )
            )  # fmt: skip
        for snapshot, maps in zip(snapshots, colours, strict=True):
            similar = patch_similarity(snapshot.features_FYXD[image])
            pictures.append(
                Picture(
                    colour_map(maps[image]),
                    f"Map of image {image + 1} after step {snapshot.step:,}: two of its patches are"
                    f" {similar:.2f} similar on average",
                    f"step {snapshot.step:,}", sides(aspect), blocky=True,
                )
            )  # fmt: skip
        strips.append(PictureRow(f"Image {image + 1}", pictures))
    grid = last.features_FYXD.shape[1:3]
    caption = (
        f"The teacher's patch features after the steps named, {grid[0]} x {grid[1]} places an"
        " image. Red, green and blue are the three strongest directions of a step (PCA of all"
        " images together), turned so that colours match the last step's as well as they can: equal"
        " colours mean similar features. In a model that learns, patches of one tissue come to"
        " share a colour; at first, colours follow brightness and position."
    )
    shown = images and last.images_FCSS is not None
    return Gallery(caption, strips, note="" if shown else LEFT_OUT)


def model_galleries(
    run: RunData, snapshots: Sequence[Snapshot], images: bool, seconds: float
) -> tuple[Gallery, Gallery]:
    """Attention and neighbours by the run's model.

    Raises: UserError if the model or its images cannot be read.
    """
    model, preparation = looking.load_model(run.path / "model", "auto")
    squares: list[np.ndarray] = []
    aspects: list[float] = []
    if snapshots and snapshots[-1].images_FCSS is not None:
        squares = list(snapshots[-1].images_FCSS)
        aspects = [float(aspect) for aspect in snapshots[-1].aspect_F]
    try:
        seed = int(run.settings.get("train.seed") or 0)
        refs = looking.sample_refs(
            run.settings.get("data.paths") or [],
            seed,
            reading=reading_of(run.path),
            where=run.settings.get("data.where"),
            take=run.settings.get("data.take") or (),
        )
        looked = looking.look(model, preparation, refs, seconds)
    except UserError as error:
        looked, gone = None, str(error)
    if looked is not None and not squares:
        squares, aspects = looked.squares[:SHOWN], looked.aspects[:SHOWN]
    if squares:
        heat = looking.attentions(model, preparation, squares[:SHOWN])
        attention = attention_gallery(squares, aspects, heat, images)
    else:
        attention = Gallery("", missing=gone)
    if looked is None:
        return attention, Gallery("", missing=gone)
    return attention, neighbour_gallery(looked, images)


def attention_gallery(
    squares: Sequence[np.ndarray],
    aspects: Sequence[float],
    heat: Sequence[np.ndarray],
    images: bool,
) -> Gallery:
    """What the CLS token attends to, a picture an image."""
    pictures = []
    for i, attention_YX in enumerate(heat):
        low, high = np.percentile(attention_YX, (1, 99))
        scaled = (attention_YX - low) / max(float(high - low), 1e-12)
        half = share_for_half(attention_YX)
        under = squares[i] if images else None
        pictures.append(
            Picture(
                heat_map(scaled, under, aspects[i]),
                f"Attention in image {i + 1}, strongest {where(attention_YX)}: half of it is on"
                f" {half:.0%} of the image",
                f"half on {half:.0%}", sides(aspects[i]),
            )
        )  # fmt: skip
    caption = (
        "Where the CLS token of the last layer looks, the mean of its heads: light is much, dark is"
        " little. Below each picture, on how much of the image half of the attention lies: 50%"
        " would be the same everywhere. Attention is a hint at what is used, not a proof."
    )
    return Gallery(caption, [PictureRow("Attention", pictures)], note="" if images else LEFT_OUT)


def where(attention_YX: np.ndarray) -> str:
    """Where a map is strongest, in words: ``at the upper left``, ``in the middle``."""
    rows, columns = attention_YX.shape
    y, x = np.unravel_index(int(attention_YX.argmax()), attention_YX.shape)
    vertical = ("upper", "", "lower")[min(2, int(3 * y / rows))]
    horizontal = ("left", "", "right")[min(2, int(3 * x / columns))]
    if not horizontal:
        return {"upper": "at the top", "lower": "at the bottom"}.get(vertical, "in the middle")
    return f"at the {vertical} {horizontal}".replace("  ", " ")


def neighbour_gallery(looked: EmbeddedImages, images: bool) -> Gallery:
    """The nearest neighbours of the first images of the sample."""
    count = len(looked.squares)
    if count < 3:
        return Gallery("", missing=f"{count} images are too few to look for neighbours.")
    if not images:
        return Gallery("", missing=LEFT_OUT)
    found = nearest(looked.features_ND, range(min(SHOWN, count)), NEIGHBOURS)
    strips = []
    for query, neighbours in enumerate(found):
        title = f"Sample image {query + 1}"
        pictures = [picture_of(looked, query, title, "query")]
        for other, cosine in neighbours:
            same = (
                looked.patients[query] is not None
                and looked.patients[query] == looked.patients[other]
            )
            patient = ", same patient" if same else ""
            pictures.append(
                picture_of(
                    looked, other,
                    f"Sample image {other + 1}, similarity {cosine:.3f}{patient}",
                    f"{cosine:.3f}{patient}",
                )
            )  # fmt: skip
        strips.append(PictureRow(title, pictures))
    caption = (
        f"{len(strips)} images and, of {count:,} images drawn from the run's data, those whose CLS"
        " features are nearest, with the cosine similarity. Ask what neighbours share: a finding"
        " or an anatomy is what one hopes for; a scanner, a label burnt into the film or the same"
        " patient is a shortcut."
    )
    return Gallery(caption, strips)


def picture_of(looked: EmbeddedImages, index: int, alt: str, label: str) -> Picture:
    """One image of the sample."""
    aspect = looked.aspects[index]
    return Picture(thumbnail(looked.squares[index], aspect), alt, label, sides(aspect))
