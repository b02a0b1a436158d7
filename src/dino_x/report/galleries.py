"""The pictures of the page: maps over training, attention, neighbours, each with its words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dino_x.errors import UserError
from dino_x.model.families import registers_of
from dino_x.report import looking
from dino_x.report.first_last import first_and_last
from dino_x.report.maps import (
    Snapshot,
    patch_similarity,
    pca_colours,
    read_snapshots,
    share_for_half,
)
from dino_x.report.neighbours import LEFT_OUT, groups_of, known_of, neighbour_gallery
from dino_x.report.page import Gallery, Picture, PictureRow
from dino_x.report.pictures import colour_map, heat_map, sides, thumbnail
from dino_x.report.run_data import RunData
from dino_x.report.scatter import FeatureMap, feature_maps
from dino_x.report.seen import seen_gallery
from dino_x.runs.folder import reading_of

SHOWN = 6  # images whose attention and neighbours are shown


@dataclass(frozen=True)
class Galleries:
    """The sections that are made with snapshots and the model, and the maps of features."""

    seen: Gallery
    first_last: Gallery
    maps: Gallery
    attention: Gallery
    neighbours: Gallery
    feature_maps: list[FeatureMap]


def galleries(run: RunData, images: bool, seconds: float) -> Galleries:
    """Everything that is looked at with the run's snapshots and model.

    Args:
        run: the run.
        images: whether the user's images may be in the page.
        seconds: for reading and embedding the sample of images.
    """
    snapshots = read_snapshots(run.snapshots)
    of_snapshots = seen_gallery(snapshots, images), *map_galleries(run, snapshots, images)
    if run.model_step is None or not (run.path / "model" / "config.json").is_file():
        no_model = "There is no model yet: the first checkpoint makes it (checkpoint.every)."
        missing = Gallery("", missing=no_model)
        return Galleries(*of_snapshots, missing, missing, [])
    try:
        return Galleries(*of_snapshots, *model_galleries(run, snapshots, images, seconds))
    except UserError as error:
        missing = Gallery("", missing=str(error))
        return Galleries(*of_snapshots, missing, missing, [])


def map_galleries(
    run: RunData, snapshots: Sequence[Snapshot], images: bool
) -> tuple[Gallery, Gallery]:
    """PCA maps of the fixed images: of the first and the last step, large; and of all steps."""
    if not snapshots:
        why = (
            "report.snapshots is off in this run"
            if run.settings.get("report.snapshots") is False
            else "it was made by an older version, or has not begun"
        )
        missing = Gallery("", missing=f"This run kept no patch features: {why}.")
        return missing, missing
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
    every = Gallery(caption, strips, note="" if shown else LEFT_OUT)
    return first_and_last(snapshots, colours, images), every


def model_galleries(
    run: RunData, snapshots: Sequence[Snapshot], images: bool, seconds: float
) -> tuple[Gallery, Gallery, list[FeatureMap]]:
    """Attention, neighbours and maps of features by the run's model.

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
        shares = looking.mean_token_shares(model, preparation, squares[:SHOWN])
        registers = about_registers(registers_of(model.config), *shares)
        attention = attention_gallery(squares, aspects, heat, images, registers)
    else:
        attention = Gallery("", missing=gone)
    if looked is None:
        return attention, Gallery("", missing=gone), []
    known = known_of(run, looked.refs)
    looked = replace(looked, refs=known.refs)
    maps = feature_maps(looked.features_ND, groups_of(looked.refs, known.labels))
    return attention, neighbour_gallery(looked, images, known.labels), maps


def attention_gallery(
    squares: Sequence[np.ndarray],
    aspects: Sequence[float],
    heat: Sequence[np.ndarray],
    images: bool,
    registers: str,
) -> Gallery:
    """What the CLS token attends to, a picture an image.

    Args:
        squares: the images.
        aspects: height / width of each image itself.
        heat: the attention on each.
        images: whether the user's images may be in the page.
        registers: sentences about the tokens that are no patches.
    """
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
        f" {registers}"
    )
    return Gallery(caption, [PictureRow("Attention", pictures)], note="" if images else LEFT_OUT)


def about_registers(count: int, on_cls: float, on_registers: float) -> str:
    """What the tokens are that are no patches, and how much attention they take.

    Args:
        count: registers of the model.
        on_cls: share of the attention of CLS on itself.
        on_registers: share on all registers.
    """
    if not count:
        return (
            f"{on_cls:.0%} of it is on the CLS token itself, which has no place in the picture."
            " This model has no registers: a large one then tends to keep what it knows of the"
            " whole image in a few patches of the background, which shine brightly and mean"
            " nothing there (Darcet et al. 2024). model.registers=4 gives it places for that."
        )
    return (
        f"{on_cls:.0%} of it is on the CLS token itself and {on_registers:.0%} on the {count}"
        " registers, tokens without a place that keep what the model knows of the whole image"
        " (Darcet et al. 2024). Neither is in the picture."
    )


def where(attention_YX: np.ndarray) -> str:
    """Where a map is strongest, in words: ``at the upper left``, ``in the middle``."""
    rows, columns = attention_YX.shape
    y, x = np.unravel_index(int(attention_YX.argmax()), attention_YX.shape)
    vertical = ("upper", "", "lower")[min(2, int(3 * y / rows))]
    horizontal = ("left", "", "right")[min(2, int(3 * x / columns))]
    if not horizontal:
        return {"upper": "at the top", "lower": "at the bottom"}.get(vertical, "in the middle")
    return f"at the {vertical} {horizontal}".replace("  ", " ")
