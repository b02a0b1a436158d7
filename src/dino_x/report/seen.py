"""What the network saw: the fixed images as evaluation and as a step of training has them."""

from collections.abc import Sequence

import numpy as np

from dino_x.report.maps import Snapshot
from dino_x.report.neighbours import LEFT_OUT
from dino_x.report.page import Gallery, Picture, PictureRow
from dino_x.report.pictures import as_picture, data_uri, sides, thumbnail

SIDE = 112  # pixels of a picture

CAPTION = (
    "The run's fixed images, and the crops of them that a step of this run has: their windows and"
    " intensities changed as in training, masked patches darkened. Look here first if a model does"
    " not learn: an image that is nearly black, white or flat has a wrong window or modality"
    " (data.modality, dino-x options windows), and crops in which nothing can be recognised are"
    " too small (views.global_scale, views.local_scale). dino-x views draws more of them before a"
    " run."
)
NONE_KEPT = "This run kept no crops: it was made by an older version, or has not begun."


def seen_gallery(snapshots: Sequence[Snapshot], images: bool) -> Gallery:
    """A strip an image: as evaluation sees it, its global crops, some of its local ones.

    Args:
        snapshots: in order; the first one has the crops.
        images: whether the user's images may be in the page.
    """
    if not images:
        return Gallery("", missing=LEFT_OUT)
    first = snapshots[0] if snapshots else None
    if first is None or first.images_FCSS is None or first.global_FVCSS is None:
        return Gallery("", missing=NONE_KEPT)
    strips = []
    for image, whole_CSS in enumerate(first.images_FCSS):
        name, aspect = f"Image {image + 1}", float(first.aspect_F[image])
        whole = thumbnail(whole_CSS, aspect, SIDE)
        pictures = [Picture(whole, f"{name} in evaluation", "evaluation", sides(aspect, SIDE))]
        for kind, crops_FVCSS in (("global", first.global_FVCSS), ("local", first.local_FVCSS)):
            for view, crop_CSS in enumerate([] if crops_FVCSS is None else crops_FVCSS[image]):
                label = f"{kind} {view + 1}"
                pictures.append(picture_of(crop_CSS, f"{name}, {kind} crop {view + 1}", label))
        strips.append(PictureRow(name, pictures))
    return Gallery(CAPTION, strips)


def picture_of(crop_CSS: np.ndarray, alt: str, label: str) -> Picture:
    """A crop at its own size, shown as large as the others."""
    return Picture(data_uri(as_picture(crop_CSS), "jpeg"), alt, label, (SIDE, SIDE))
