"""Masks of images: the mask of each image, checked to fit it.

A mask is an image of the same height and width whose values are classes: 0 is the background,
every other value a class of its own.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from dino_x.data.index.content import content_keys
from dino_x.data.index.label_sources import is_table, items_from_csv
from dino_x.data.index.label_tables import read_table
from dino_x.data.index.labels import (
    sides_of,
    tested_side,
    warn_of_unknown_patients,
)
from dino_x.data.index.spellings import with_one_spelling
from dino_x.data.index.splits import Item, make_split
from dino_x.data.readers import registry
from dino_x.data.readers.registry import ImageRef, Unreadable
from dino_x.errors import UserError

MOST_VALUES = 150  # different values in one mask; with more they cannot be classes
FIT_SHARE = 0.8  # of the training patients, where a validation set is made of the others
# The purposes of the two sides that the training patients are split into.
PURPOSES = {"train": "fit", "test": "choose"}


@dataclass(frozen=True)
class Masked:
    """Images with a mask and a side.

    Attributes:
        refs: the N images.
        masks: the mask of each.
        side: the purpose of each: ``fit``, ``choose`` or ``test``, [N] strings.
        patients: the patient of each, or its file where the patient is not known, [N]; never to be
            written out.
        volumes: the volume that each is a slice of, or a name of its own, [N]; never to be written
            out.
        values: the values of the K foreground classes, ascending.
        patients_known: whether ``patients`` are patients for every image.
        tested: what the tested split is called, ``test`` or ``val``.
        validation: how the images to choose on were found: ``given``, ``patient``, ``image`` or
            ``none``.
        split_by: ``given``, ``patient`` or ``image``.
        left_out: how many files were not used, by reason.
        warnings: sentences for the user.
    """

    refs: list[ImageRef]
    masks: list[ImageRef]
    side: np.ndarray
    patients: np.ndarray
    volumes: np.ndarray
    values: list[int]
    patients_known: bool
    tested: str
    validation: str
    split_by: str
    left_out: dict[str, int]
    warnings: list[str]

    @property
    def names(self) -> list[str]:
        """The names of the K classes: ``foreground`` where there is one, else their values."""
        if len(self.values) == 1:
            return ["foreground"]
        return [str(value) for value in self.values]


def has_masks(labels: str | Path | None) -> bool:
    """Whether a table of labels has a column ``mask`` that is not empty."""
    if labels is None or not is_table(labels):
        return False
    if not Path(labels).is_file():
        return False
    try:
        masks = [row["mask"] for _, row in read_table(Path(labels), "mask")]
    except UserError:
        return False
    return any(masks)


def load_masks(
    masks: str | Path,
    labels: str | Path | None,
    refs: Sequence[ImageRef],
    data_paths: Sequence[str | Path],
    kept: Mapping[str, str] | None = None,
) -> Masked:
    """Gives each image its mask and its side, and checks all masks.

    Args:
        masks: a CSV file with the columns ``path`` and ``mask`` (relative to the CSV file's folder
            or to a data path) and, if they are known, ``patient`` and ``split``; or a folder of
            masks that are called as their images are, whatever their suffix.
        labels: a CSV file that gives the patients and the split for a folder of masks.
        refs: the images found below the data paths.
        data_paths: the folders the images are in.
        kept: the split that a run made, by the key of an item, see ``splits.make_split``.

    Raises:
        UserError: for masks that cannot be found or read, that are not as large as their image,
            that are no masks; for a patient in two splits, and a class that train does not have.
    """
    if not Path(masks).exists():
        raise UserError(f"no such file or folder of masks: {masks}")
    frames: dict[Path, list[ImageRef]] = {}
    for ref in refs:
        frames.setdefault(ref.path, []).append(ref)
    roots = [Path(path) for path in data_paths]
    items, files, left_out = _items_with_masks(Path(masks), labels, frames, roots)
    items, alike = with_one_spelling(items)
    sides, split_by = sides_of(items, content_keys(item.file for item in items), kept)
    tested = tested_side(sides)
    purposes, validation = _purposes(items, sides, tested)
    images: list[ImageRef] = []
    masks_of_images: list[ImageRef] = []
    patients: list[str] = []
    side_of_images: list[str] = []
    volumes: list[str] = []
    for item, purpose in zip(items, purposes, strict=True):
        pairs = _frame_by_frame(frames[item.file], files[item.file])
        images += [image for image, _ in pairs]
        masks_of_images += [mask for _, mask in pairs]
        patients += [item.patient or f"file {item.key}"] * len(pairs)
        side_of_images += [purpose] * len(pairs)
        volumes += [volume_of(image, item, len(pairs) > 1) for image, _ in pairs]
    side = np.array(side_of_images)
    for needed, called in (("fit", "train"), ("test", tested)):
        if needed not in side:
            raise UserError(f"no image of {called} has a mask: masks are needed in train and test")
    found = _check_all(images, masks_of_images)
    if validation != "given":
        only_chosen_on = _values(found, side == "choose") - _values(found, side == "fit")
        if only_chosen_on:  # a class too rare to be on both sides
            side[side == "choose"], validation = "fit", "none"
    return Masked(
        refs=images,
        masks=masks_of_images,
        side=side,
        patients=np.array(patients),
        volumes=np.array(volumes),
        values=_classes(found, side, tested),
        patients_known=all(item.patient is not None for item in items),
        tested=tested,
        validation=validation,
        split_by=split_by,
        left_out={reason: count for reason, count in left_out.items() if count},
        warnings=[f"masks: {line}" for line in alike + warn_of_unknown_patients(items, split_by)],
    )


def volume_of(image: ImageRef, item: Item, several: bool) -> str:
    """A name for the volume that an image is a slice of, or for the image, if it is of none.

    A volume is what a column ``volume`` of the table says, else the slices of a series, which have
    places along it, else a file of several images.
    """
    if item.volume:
        return f"volume {item.volume}"
    if image.series and image.position_mm is not None:
        return f"series {image.series}"
    return f"file {item.key}" if several else f"image {item.key}"


def _items_with_masks(
    masks: Path,
    labels: str | Path | None,
    frames: dict[Path, list[ImageRef]],
    roots: list[Path],
) -> tuple[list[Item], dict[Path, Path], dict[str, int]]:
    """The images that have a mask, the file of each one's mask, and counts of those left out."""
    if masks.is_dir():
        items, left_out = _items_from_folder(masks, labels, frames, roots)
        files = {item.file: Path(item.label) for item in items}
    else:
        items, left_out = items_from_csv(masks, list(frames), roots, "mask")
        left_out["images without a mask"] = len(frames) - len(items)
        left_out.pop("images with an empty label", None)
        files = {item.file: _find_mask(masks, item, roots) for item in items}
    return [replace(item, label="mask") for item in items], files, left_out


def read_mask(ref: ImageRef) -> np.ndarray:
    """The values of a mask, whole numbers of 0 or more, int64 [H, W].

    A palette's colours do not matter: the values are its indices.

    Raises:
        UserError: for a file that cannot be read, or that is no mask.
    """
    try:
        values = _palette_indices(ref.path)
        if values is None:
            values = registry.read(ref).pixels
    except Unreadable as error:
        raise UserError(f"the mask {ref.path} cannot be read: {error}") from error
    if len(values) == 3 and (values != values[:1]).any():
        raise UserError(f"the mask {ref.path} is a colour image: a mask has one value a pixel")
    whole = values[0].astype(np.int64)
    if (whole != values[0]).any() or whole.min() < 0:
        raise UserError(f"the mask {ref.path} has values that are not whole numbers of 0 or more")
    return whole


def _palette_indices(path: Path) -> np.ndarray | None:
    """The values of a file with a palette, [1, H, W]; None for any other file."""
    try:
        with Pillow.open(path, formats=("PNG", "BMP")) as picture:
            if picture.mode == "P":
                return np.asarray(picture)[None]
    except OSError:
        pass
    return None


def _items_from_folder(
    folder: Path,
    labels: str | Path | None,
    frames: dict[Path, list[ImageRef]],
    roots: list[Path],
) -> tuple[list[Item], dict[str, int]]:
    """Items whose label is the path of their mask."""
    by_path, by_name = _masks_below(folder)
    table: dict[Path, Item] = {}
    if labels is not None and is_table(labels):
        rows, _ = items_from_csv(Path(labels), list(frames), roots, "path")
        table = {item.file: item for item in rows}
    images = [file for file in frames if not file.is_relative_to(folder)]  # others are masks
    if not images:
        raise UserError(f"all images are below the folder of masks {folder}: keep them apart")
    items = []
    for file in images:
        key = _relative(file, roots)
        in_place = by_path.get(str(key.with_name(_stem(file))))
        masks = [in_place] if in_place else by_name.get(_stem(file), [])
        unlisted = bool(table) and file not in table
        if not masks or unlisted:
            continue
        if len(masks) > 1:
            raise UserError(
                f"{len(masks)} masks below {folder} are called '{_stem(file)}', and none lies"
                " where its image does: name them in a CSV file with the columns path and mask"
            )
        row = table.get(file, Item(file, str(key), "", frames[file][0].patient))
        items.append(replace(row, label=str(masks[0])))
    if not items:
        raise UserError(
            f"no mask in {folder} is called as an image is, such as"
            f" '{_stem(next(iter(frames)))}.png'"
        )
    return items, {"images without a mask": len(images) - len(items)}


def _relative(file: Path, roots: list[Path]) -> Path:
    """The path of an image below the first data path that it is in; its name if it is in none."""
    for root in roots:
        if file.is_relative_to(root):
            return file.relative_to(root)
    return Path(file.name)


def _masks_below(folder: Path) -> tuple[dict[str, Path], dict[str, list[Path]]]:
    """The masks in a folder, by their path without suffix and by their name without suffix."""
    by_path: dict[str, Path] = {}
    by_name: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and registry.looks_like_image(file):
            by_path[str(file.relative_to(folder).with_name(_stem(file)))] = file
            by_name.setdefault(_stem(file), []).append(file)
    return by_path, by_name


def _stem(file: Path) -> str:
    """The name of a file without its suffix, ``.nii.gz`` being one."""
    if file.suffix == ".gz":
        return file.stem.removesuffix(".nii")
    return file.stem


def _find_mask(table: Path, item: Item, roots: list[Path]) -> Path:
    """The file of a mask that a row of a table names.

    Raises:
        UserError: if there is none.
    """
    for base in (table.parent, *roots):
        if (base / item.label).is_file():
            return base / item.label
    raise UserError(
        f"{table}: the mask of row {item.row} does not exist: '{item.label}'; paths must be"
        " relative to the CSV file's folder or to --data"
    )


def _frame_by_frame(images: list[ImageRef], file: Path) -> list[tuple[ImageRef, ImageRef]]:
    """The frames of an image, each with the frame of its mask.

    Raises:
        UserError: for a mask that cannot be read or has too few frames.
    """
    try:
        masks = {mask.frame: mask for mask in registry.refs(file)}
    except Unreadable as error:
        raise UserError(f"the mask {file} cannot be read: {error}") from error
    if len(masks) <= max(image.frame for image in images):
        raise UserError(f"the mask {file} has {len(masks)} frames, and its image more")
    return [(image, masks[image.frame]) for image in images]


def _purposes(items: list[Item], sides: list[str], tested: str) -> tuple[list[str], str]:
    """The purpose of each item, and how the items to choose on were found."""
    if "val" in sides and tested != "val":
        names = {"train": "fit", "val": "choose", "test": "test"}
        return [names[side] for side in sides], "given"
    train = [item for item, side in zip(items, sides, strict=True) if side == "train"]
    made = iter(make_split(train, FIT_SHARE))
    purposes = []
    for side in sides:
        purposes.append("test" if side == tested else PURPOSES[next(made)])
    if "choose" not in purposes:
        return purposes, "none"
    patients_known = all(item.patient is not None for item in train)
    return purposes, "patient" if patients_known else "image"


def _is_jpeg(path: Path) -> bool:
    """Whether a file begins as a JPEG does."""
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def _check_all(refs: list[ImageRef], masks: list[ImageRef]) -> list[np.ndarray]:
    """The values in each mask.

    Raises:
        UserError: for the first mask that does not fit its image.
    """

    def check(pair: tuple[ImageRef, ImageRef]) -> np.ndarray:
        image, mask = pair
        if (image.height, image.width) != (mask.height, mask.width):
            raise UserError(
                f"the mask {mask.path} is {mask.width} x {mask.height} px, but its image is"
                f" {image.width} x {image.height} px: a mask must be as large as its image"
            )
        values = np.unique(read_mask(mask))
        too_many = len(values) > MOST_VALUES
        if too_many or (len(values) > 2 and _is_jpeg(mask.path)):
            raise UserError(
                f"the mask {mask.path} has {len(values)} different values: is it an image, or was"
                " it saved as JPEG, which changes values? Save masks as PNG"
            )
        return values

    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        return list(pool.map(check, zip(refs, masks, strict=True)))


def _values(found: list[np.ndarray], rows: np.ndarray) -> set[int]:
    """The foreground values of some of the masks."""
    values: set[int] = set()
    for row in np.flatnonzero(rows):
        values.update(found[row].tolist())
    return values - {0}


def _classes(found: list[np.ndarray], side: np.ndarray, tested: str) -> list[int]:
    """The foreground values of train; no other side may have one more."""
    known = _values(found, side == "fit")
    if not known:
        raise UserError("the masks of train are all empty: every value is 0, the background")
    for what, called in (("choose", "val"), ("test", tested)):
        unknown = sorted(_values(found, side == what) - known)
        if unknown:
            raise UserError(
                f"no mask of train has the value {unknown[0]}, which {called} has: a class must be"
                " in train to be learnt"
            )
    return sorted(known)
