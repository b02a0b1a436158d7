"""Maps of the first and of the last step side by side, large and over the image."""

from collections.abc import Sequence

import numpy as np

from dino_x.report.maps import Snapshot
from dino_x.report.page import Gallery, Picture, PictureRow
from dino_x.report.pictures import over_image, sides, thumbnail
from dino_x.report.places import share_by_position

SIDE = 300  # longer side of a picture, pixels


def first_and_last(
    snapshots: Sequence[Snapshot], colours: Sequence[np.ndarray], images: bool
) -> Gallery:
    """A row an image: the image, its map after the first and after the last step that was kept.

    Args:
        snapshots: at least one, in order.
        colours: [F, Y, X, 3] of each, as `maps.pca_colours` makes them.
        images: whether the user's images may be in the page.
    """
    last = snapshots[-1]
    shown = list(zip(snapshots, colours, strict=True))
    ends = shown if len(shown) < 2 else [shown[0], shown[-1]]
    rows = []
    for image in range(len(last.features_FYXD)):
        aspect = float(last.aspect_F[image])
        under = last.images_FCSS[image] if images and last.images_FCSS is not None else None
        size = sides(aspect, SIDE)
        pictures = []
        if under is not None:
            alone = thumbnail(under, aspect, SIDE)
            pictures.append(Picture(alone, f"Image {image + 1}", "image", size))
        over = ", over the image" if under is not None else ""
        for snapshot, maps in ends:
            moment = moment_of(snapshot)
            pictures.append(
                Picture(
                    over_image(maps[image], under, aspect, SIDE),
                    f"Map of image {image + 1} {moment}{over}",
                    moment, size,
                )
            )  # fmt: skip
        rows.append(PictureRow(f"Image {image + 1}", pictures))
    return Gallery(words_of(ends), rows)


def moment_of(snapshot: Snapshot) -> str:
    """When a snapshot was taken: ``before the first step``, ``after step 1,200``."""
    return f"after step {snapshot.step:,}" if snapshot.step else "before the first step"


def words_of(ends: Sequence[tuple[Snapshot, np.ndarray]]) -> str:
    """How much the colours follow position, at both ends."""
    shares = [(moment_of(snapshot), share_by_position(list(maps))) for snapshot, maps in ends]
    told = ", and ".join(f"{share:.0%} {moment}" for moment, share in shares)
    return (
        f"The place in the image alone tells {told} of what the colours vary by (a smooth function"
        " of the place, the same for all images). In a model that learns, this falls, and colours"
        " follow what is in the image: patches of one tissue share a colour wherever it lies. Where"
        " organs lie at much the same place in all images it stays high, and rightly so."
    )
