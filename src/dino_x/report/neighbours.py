"""The nearest neighbours of some images, with their labels, and what groups images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dino_x.data.image import ImageRef
from dino_x.data.index.label_kinds import MOST_CLASSES
from dino_x.data.index.labels import items_of
from dino_x.data.storage.member import as_path
from dino_x.errors import UserError
from dino_x.report.looking import EmbeddedImages
from dino_x.report.maps import nearest
from dino_x.report.page import Gallery, Picture, PictureRow
from dino_x.report.pictures import sides, thumbnail
from dino_x.report.run_data import RunData

QUERIES = 6
NEIGHBOURS = 5
LEFT_OUT = "Images are left out of this page (--no-images, or report.images=false)."
Labels = list[str | None]


@dataclass(frozen=True)
class Known:
    """What the run's own labels say of images.

    Attributes:
        labels: of each image; None where there is none.
        refs: the images, with the patients of the labels where their headers name none.
    """

    labels: Labels
    refs: list[ImageRef]


def known_of(run: RunData, refs: Sequence[ImageRef]) -> Known:
    """What the run's own labels say of images; nothing if they are not where they were.

    Numbers such as an age are no labels: hardly two images have the same.
    """
    labels, nothing = run.settings.get("data.labels"), Known([None] * len(refs), list(refs))
    if not labels:
        return nothing
    try:
        items = items_of(
            labels,
            [ref.path for ref in refs],
            data_paths=[as_path(path) for path in run.settings.get("data.paths") or []],
            label_column=str(run.settings.get("data.label_column") or "label"),
        )
    except UserError:
        return nothing
    item_of = {item.file: item for item in items}
    patient_of = {item.file: f"labels: {item.patient}" for item in items if item.patient}
    named = [
        replace(ref, patient=patient_of.get(ref.path)) if ref.patient is None else ref
        for ref in refs
    ]
    if len({item.label for item in items}) > MOST_CLASSES:
        return Known(nothing.labels, named)
    found = [item_of.get(ref.path) for ref in refs]
    return Known([None if item is None else item.label for item in found], named)


def groups_of(refs: Sequence[ImageRef], labels: Labels) -> dict[str, Labels]:
    """What may explain where images lie in the space of features; patients are numbered."""
    numbers = {
        key: n for n, (key, _) in enumerate(Counter(ref.patient for ref in refs).most_common(), 1)
    }
    patients: Labels = [
        None if ref.patient is None else f"patient {numbers[ref.patient]}" for ref in refs
    ]
    if len(set(patients)) > len(patients) / 2:  # hardly two images of anyone
        patients = [None] * len(refs)
    return {
        "label": labels,
        "patient": patients,
        "source": [f"data path {ref.source + 1}" for ref in refs],
        "modality": [ref.modality for ref in refs],
        "format": [ref.format for ref in refs],
    }


def neighbour_gallery(looked: EmbeddedImages, images: bool, labels: Labels) -> Gallery:
    """The nearest neighbours of the first images of the sample."""
    count = len(looked.squares)
    if count < 3:
        return Gallery("", missing=f"{count} images are too few to look for neighbours.")
    if not images:
        return Gallery("", missing=LEFT_OUT)
    found = nearest(looked.features_ND, range(min(QUERIES, count)), NEIGHBOURS)
    strips = []
    right, judged = 0, 0
    for query, neighbours in enumerate(found):
        title = f"Sample image {query + 1}"
        own = labels[query]
        pictures = [picture_of(looked, query, title, own or "query")]
        for other, cosine in neighbours:
            mark = mark_of(own, labels[other])
            judged += mark != ""
            right += mark == "right"
            pictures.append(
                picture_of(
                    looked, other,
                    f"Sample image {other + 1}, similarity {cosine:.3f}"
                    f"{in_words(looked, query, other, labels[other], mark)}",
                    f"{cosine:.3f}{shown_below(looked, query, other, labels[other], mark)}",
                    mark,
                )
            )  # fmt: skip
        strips.append(PictureRow(title, pictures))
    caption = (
        f"{len(strips)} images and, of {count:,} images drawn from the run's data, those whose CLS"
        " features are nearest, with the cosine similarity. Ask what neighbours share: a finding"
        " or an anatomy is what one hopes for; a scanner, a label burnt into the film or the same"
        " patient is a shortcut."
    )
    if judged:
        caption += f" {right} of these {judged} neighbours have the label of their image (✓)."
    return Gallery(caption, strips)


def mark_of(own: str | None, other: str | None) -> str:
    """``right`` or ``wrong``; nothing where a label is missing."""
    if own is None or other is None:
        return ""
    return "right" if own == other else "wrong"


def is_same_patient(looked: EmbeddedImages, one: int, other: int) -> bool:
    """Whether two images are known to be of one patient."""
    patient = looked.refs[one].patient
    return patient is not None and patient == looked.refs[other].patient


def in_words(looked: EmbeddedImages, query: int, other: int, label: str | None, mark: str) -> str:
    """What a screen reader says of a neighbour."""
    whose = ", same patient" if is_same_patient(looked, query, other) else ""
    if not mark:
        return whose
    agrees = "the same as" if mark == "right" else "other than"
    return f"{whose}, label {label}, {agrees} that of the image"


def shown_below(
    looked: EmbeddedImages, query: int, other: int, label: str | None, mark: str
) -> str:
    """What stands below a neighbour."""
    whose = ", same patient" if is_same_patient(looked, query, other) else ""
    signs = {"right": f" ✓ {label}", "wrong": f" ✕ {label}"}
    return f"{signs.get(mark, '')}{whose}"


def picture_of(looked: EmbeddedImages, index: int, alt: str, label: str, mark: str = "") -> Picture:
    """One image of the sample."""
    aspect = looked.aspects[index]
    uri = thumbnail(looked.squares[index], aspect)
    return Picture(uri, alt, label, sides(aspect), mark=mark)
