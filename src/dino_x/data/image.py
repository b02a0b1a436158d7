"""What a reader promises: an image found in a file, an image read from it, or a reason why not.

The classes here are what all rooms of `data` pass on to each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # options take long to import, and processes that read headers have none
    from dino_x.config.options import DataOptions

# One frame may have this many pixels. The largest films (mammography) have 30 million; a header
# that claims more than this is a decompression bomb or a whole slide, which needs tiling. Decoding
# this many takes up to 1 GB: 4 bytes for each of 3 channels, and the memory of the decoder.
MAX_PIXELS = 40_000_000

# One file may hold this many images: the longest series of perfusion or cine have thousands.
MAX_IMAGES = 100_000

# An image may have this many channels: hyperspectral cameras have up to a few hundred.
MAX_CHANNELS = 512

# Planes of a volume, in the order of the axis they are stacked along: x, y, z of the patient.
SLICE_AXES = ("sagittal", "coronal", "axial")

# Images that are not a plain view of anatomy. They are left out unless ``data.take`` names them.
KINDS = (
    "localizer",
    "dose",
    "segmentation",
    "screenshot",
    "map",
    "mosaic",
    "slide_label",
    "mask",
)


class Unreadable(Exception):  # noqa: N818 - it reads as what happened: "except Unreadable"
    """A file, or one image of it, that cannot be read; the message is the reason.

    Reasons are fixed phrases with technical facts (sizes, encodings). They never quote a value
    of a header, so that no patient's name or number can travel in them.
    """


# How the reason begins for a file of a report, a plan and the like: it is whole, and no image.
WITHOUT_IMAGE = "no pixel data:"


@dataclass(frozen=True, kw_only=True, slots=True)  # there may be millions
class ImageRef:
    """Where one image lies, and what its file's header says of it.

    Attributes:
        path: the file, as it was named or found.
        frame: the number of the image in the file, from 0: a DICOM frame or a TIFF page.
        height: rows in the file.
        width: columns in the file.
        modality: DICOM modality such as "CT"; None where the file does not say.
        spacing_mm: distance between rows and between columns in millimetres.
        thickness_mm: thickness of the slice in millimetres.
        position_mm: where the slice lies along the normal of its series, in millimetres. The
            slices of a volume are ordered by it.
        orientation: the directions of rows and of columns in the patient, as DICOM has them.
        stack: a salted hash that differs between images of a series that are no neighbours, such
            as other echoes, times or kinds of image; None if the file does not say.
        acquisition: a salted hash of the acquisition that the image comes from; None if unknown.
        patient: a salted hash that is the same for all images of a patient; None if unknown.
        series: a salted hash that is the same for all images of a series or volume; None if
            unknown.
        source: the number of the path that it was found under, among those the user named, from 0.
        format: "DICOM", "NIfTI", "PNG", ...
        bits: number of bits of a stored value.
        body_part: DICOM Body Part Examined, if it is one of the standard's terms.
        slope: factor from stored to physical values; None where the file has none or a table.
        intercept: added after the slope.
        photometric: DICOM photometric interpretation, if it is one of the standard's terms.
        window: (low, high) that the file itself asks for, in physical units.
        axis: the direction that the slices of a volume are stacked in, see `SLICE_AXES`; of NumPy
            and TIFF files the names of their axes, see readers/axes.py.
        channels: number of channels in the file.
        image_type: DICOM Image Type, or that of the frame: those of its words that are known.
        sop_class: the keyword of the DICOM SOP class, if it is one of the standard's.
        kind: one of `KINDS`, if it is not a plain view of anatomy; else None.
        remark: what a reader cannot decide from the header: fixed phrases with "; " in between.
        state: size in bytes and time of the last change in ns of a file on a disk when its header
            was read; None if nobody noted them.
    """

    path: Path
    frame: int = 0
    height: int
    width: int
    modality: str | None = None
    spacing_mm: tuple[float, float] | None = None
    thickness_mm: float | None = None
    position_mm: float | None = None
    patient: str | None = None
    series: str | None = None
    source: int = 0
    format: str | None = None
    bits: int | None = None
    body_part: str | None = None
    slope: float | None = None
    intercept: float | None = None
    photometric: str | None = None
    window: tuple[float, float] | None = None
    axis: str | None = None
    orientation: tuple[float, ...] | None = None
    stack: str | None = None
    acquisition: str | None = None
    channels: int = 1
    image_type: str | None = None
    sop_class: str | None = None
    kind: str | None = None
    remark: str | None = None
    state: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Reading:
    """What the user says of files that do not say it themselves.

    Attributes:
        slice_axis: how volumes are cut: one of `SLICE_AXES`.
        modality: the modality of files whose values are physical and that name none (NIfTI, NRRD,
            NumPy); None if it is not known. With "CT" their values are Hounsfield units.
        axes: what the axes of arrays are that do not say it (NumPy, TIFF), see readers/axes.py;
            None reads what can be read in one way only.
    """

    slice_axis: str = "axial"
    modality: str | None = None
    axes: str | None = None

    @classmethod
    def of(cls, data: DataOptions) -> Reading:
        """Take from a run's options what they say of such files."""
        modality = None if data.modality == "auto" else data.modality
        return cls(data.slice_axis, modality, None if data.axes == "auto" else data.axes)


DEFAULT = Reading()


@dataclass(frozen=True)
class Image:
    """One image in physical units.

    Attributes:
        pixels: float32 [C, H, W]; C = 3 is red, green and blue, if they are colours. Hounsfield
            units for CT, values after the file's rescale for other DICOM and NIfTI, stored values
            otherwise (0..255 for 8-bit files, 0..65535 for 16-bit ones). Larger is brighter. May
            hold non-finite values where the file does.
        window: the (low, high) values that map to 0 and 1; low < high, both finite.
        spacing_mm: distance between rows and between columns in millimetres, if the file says.
        modality: DICOM modality such as "CT" or "DX"; None for formats that have none.
    """

    pixels: np.ndarray
    window: tuple[float, float]
    spacing_mm: tuple[float, float] | None = None
    modality: str | None = None


class Reader(Protocol):
    """A reader of one file format: a module with these two functions."""

    def refs(self, path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
        """Find the images in a file, from its header only. Raises Unreadable."""

    def read(self, ref: ImageRef) -> Image:
        """Decode one image. Raises Unreadable."""


def remarks_in(remark: str | None) -> list[str]:
    """The single phrases of `ImageRef.remark`."""
    return remark.split("; ") if remark else []


def check_size(height: int, width: int) -> None:
    """Raise Unreadable for a frame without pixels or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise Unreadable("no pixels")
    if height * width > MAX_PIXELS:
        raise Unreadable(
            f"{height} x {width} pixels are more than the {MAX_PIXELS:,} allowed in one image"
        )


def check_channels(channels: int, pixels: int) -> None:
    """Raise Unreadable for more than `MAX_CHANNELS` channels, or for too much memory in all."""
    if channels > 4 and channels * pixels > 4 * MAX_PIXELS:
        raise Unreadable(f"{channels:,} channels of {pixels:,} pixels are too much for one image")
    if channels > MAX_CHANNELS:
        raise Unreadable(
            f"{channels:,} channels are more than the {MAX_CHANNELS} allowed; if they are images,"
            " data.axes says so, such as data.axes=HWN"
        )


def check_count(images: int) -> None:
    """Raise Unreadable for a file of no images, or of more than `MAX_IMAGES`."""
    if images < 1:
        raise Unreadable("no pixels")
    if images > MAX_IMAGES:
        raise Unreadable(f"{images:,} images are more than the {MAX_IMAGES:,} allowed in one file")


def channels_first(values: np.ndarray) -> np.ndarray:
    """Turn [H, W, C] of any type into float32 [C, H, W].

    One channel after another is ten times as fast as turning all axes around at once.
    """
    pixels = np.empty((values.shape[2], *values.shape[:2]), dtype=np.float32)
    for channel in range(len(pixels)):
        pixels[channel] = values[:, :, channel]
    return pixels
