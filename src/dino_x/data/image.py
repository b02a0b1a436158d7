"""What a reader promises: an image found in a file, an image read from it, or a reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

# One frame may have this many pixels. The largest films (mammography) have 30 million; a header
# that claims more than this is a decompression bomb or a whole slide, which needs tiling.
MAX_PIXELS = 100_000_000


class Unreadable(Exception):  # noqa: N818 - it reads as what happened: "except Unreadable"
    """A file, or one image of it, that cannot be read; the message is the reason.

    Reasons are fixed phrases with technical facts (sizes, encodings). They never quote a value
    of a header, so that no patient's name or number can travel in them.
    """


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """Where one image lies, known from the file's header alone.

    Attributes:
        path: the file, as it was named or found.
        frame: which image of the file, from 0: a DICOM frame or a TIFF page.
        height: rows in the file.
        width: columns in the file.
        modality: DICOM modality such as "CT"; None where the file does not say.
        spacing_mm: distance between rows and between columns in millimetres.
        thickness_mm: of the slice, in millimetres.
        position_mm: where the slice lies along the normal of its series, in millimetres: what
            orders the slices of a volume.
        patient: a salted hash that is the same for all images of a patient; None if unknown.
        series: likewise for a series or volume.
        source: which of the paths the user named it was found under, from 0.
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


@dataclass(frozen=True)
class Image:
    """One image in physical units.

    Attributes:
        pixels: float32 [C, H, W], C = 1 or 3 (red, green, blue). Hounsfield units for CT, values
            after the file's rescale for other DICOM, stored values otherwise (0..255 for 8-bit
            files, 0..65535 for 16-bit ones). Larger is brighter. May hold non-finite values where
            the file does.
        window: the (low, high) values that map to 0 and 1; low < high, both finite.
        spacing_mm: distance between rows and between columns in millimetres, if the file says.
        modality: DICOM modality such as "CT" or "DX"; None for formats that have none.
    """

    pixels: np.ndarray
    window: tuple[float, float]
    spacing_mm: tuple[float, float] | None = None
    modality: str | None = None


class Reader(Protocol):
    """One file format. A module with these two functions is a reader."""

    def refs(self, path: Path) -> list[ImageRef]:
        """The images in a file, from its header only. Raises Unreadable."""

    def read(self, ref: ImageRef) -> Image:
        """Decode one image. Raises Unreadable."""


def check_size(height: int, width: int) -> None:
    """Raise Unreadable for a frame without pixels or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise Unreadable("no pixels")
    if height * width > MAX_PIXELS:
        raise Unreadable(
            f"{height} x {width} pixels are more than the {MAX_PIXELS:,} allowed in one image"
        )
