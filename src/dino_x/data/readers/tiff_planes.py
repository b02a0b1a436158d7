"""TIFF files whose pages are not one image each: channels, slices and times as the file names them.

OME, ImageJ, MetaMorph, FluoView, Micro-Manager, QPTIFF and tifffile's own description name the axes
of a file; where nothing does, ``data.axes`` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from tifffile import COMPRESSION

from dino_x.data.image import Unreadable, check_count
from dino_x.data.readers.axes import Layout

# Files that name their axes, or that have more planes than pages, as tifffile calls them.
_DESCRIBED = ("ome", "imagej", "shaped", "stk", "fluoview", "mmstack", "qpi")


@dataclass(frozen=True)
class Planes:
    """How the planes of a file with more than pages are images.

    Attributes:
        layout: of the planes: letters of N, Z, T and C, then H and W.
        pages: the number of the page of each plane; None if the planes follow the only page.
    """

    layout: Layout
    pages: tuple[int, ...] | None

    def of_image(self, number: int) -> list[int]:
        """The planes that are the channels of an image."""
        leading = self.layout.shape[:-2]
        numbers = np.arange(int(np.prod(leading))).reshape(*leading, 1, 1)
        layout = Layout(self.layout.axes, (*leading, 1, 1))
        found: list[int] = layout.image(numbers, number).ravel().tolist()
        return found


def planes_of(tiff: Any, asked: str | None) -> Planes | None:
    """The planes of a file whose pages are not one image each; None for all others.

    Args:
        tiff: the file.
        asked: ``data.axes``.

    Raises: Unreadable for a file that is not whole, or whose axes are not read.
    """
    page = tiff.pages[0]
    if page.imagedepth > 1:
        if len(tiff.pages) > 1:
            raise Unreadable("TIFF of several pages, each a volume, is not supported: save slices")
        return _named("Z", (int(page.imagedepth),), page, None)
    if any(getattr(tiff, f"is_{kind}", False) for kind in _DESCRIBED):
        return _of_all_series(tiff)
    letters = [letter for letter in asked or "" if letter not in "HW"]
    if letters == ["C"] and len(tiff.pages) > 1:
        pages = tuple(range(len(tiff.pages)))
        return _named("C", (len(pages),), page, pages)
    return None


def _of_all_series(tiff: Any) -> Planes | None:
    """The planes of a file that names its axes.

    Several series are several images, such as positions of a stage. If they have channels they
    must be alike.
    """
    series = _own_series(tiff) if tiff.is_ome else list(tiff.series)
    if tiff.is_qpi:
        series = series[:1]  # the others are smaller, or show the slide and its label
    if len(series) == 1:
        return _of_series(tiff, series[0])
    if all(_leading(one).get("C", 1) == 1 for one in series):
        return None
    if len({(one.axes, one.shape) for one in series}) > 1:
        raise Unreadable("TIFF of several images with channels that differ: save each as a file")
    found = [_of_series(tiff, one) for one in series]
    planes = [one for one in found if one is not None and one.pages is not None]
    first = planes[0].layout if planes else None
    if first is None or len(planes) < len(series) or "N" in first.axes:
        raise Unreadable("TIFF of several images with channels is not supported: save each alone")
    pages = tuple(page for one in planes for page in one.pages or ())
    return Planes(Layout(f"N{first.axes}", (len(planes), *first.shape)), pages)


def _own_series(tiff: Any) -> list[Any]:
    """The series of an OME-TIFF that lie in this file.

    Raises: Unreadable if one lies here in part, or if the header is that of another file.
    """
    if any(one.kind in ("generic", "uniform") for one in tiff.series):
        _refuse_undescribed(tiff)
        return list(tiff.series)
    own = []
    for one in tiff.series:
        pages = list(one.pages)
        here = sum(page is not None and page.parent is tiff for page in pages)
        if 0 < here < len(pages) or (here == 0 and len(tiff.series) == 1):
            raise Unreadable(
                f"OME-TIFF whose header names other files ({here} of {len(pages)} planes are in"
                " this one): save it as one file (bfconvert)"
            )
        if here:
            own.append(one)
    if not own:
        raise Unreadable("OME-TIFF whose images lie in other files: save it as one file")
    return own


def _refuse_undescribed(tiff: Any) -> None:
    """Raise Unreadable if pages may be channels and the header does not say which are.

    It may lie in another file, name pages of others alone, or be damaged.
    """
    channels = set(re.findall(r'\bSizeC="(\d+)"', str(tiff.ome_metadata)))
    if len(tiff.pages) > 1 and channels != {"1"}:
        raise Unreadable(
            "OME-TIFF whose header does not describe its pages: save it as one file (bfconvert)"
        )


def _leading(series: Any) -> dict[str, int]:
    """The axes of a series beyond those of a page, with their lengths."""
    inside = len(series.keyframe.axes)
    return dict(zip(series.axes[:-inside], series.shape[:-inside], strict=True))


def _of_series(tiff: Any, series: Any) -> Planes | None:
    """The planes of a series, if they are more than pages with one image each."""
    if not series.axes.endswith(series.keyframe.axes):
        return None
    leading = _leading(series)
    count = int(np.prod(list(leading.values()), dtype=np.int64))
    one_each = len(tiff.pages) >= count and leading.get("C", 1) == 1
    if count == 1 or one_each:
        return None
    names, lengths = _letters("".join(leading)), tuple(leading.values())
    if len(tiff.pages) == 1:
        check_count(count)
        page = tiff.pages[0]
        end = page.dataoffsets[0] + count * page.nbytes
        if page.compression != COMPRESSION.NONE or end > tiff.filehandle.size:
            raise Unreadable("truncated TIFF: its stack has more images than there are bytes")
        return _named(names, lengths, page, None)
    if len(tiff.pages) < count:
        raise Unreadable(f"truncated TIFF: {len(tiff.pages)} of {count} pages are there")
    pages = tuple(page.index for page in series.pages)
    return _named(names, lengths, tiff.pages[pages[0]], pages)


def _letters(axes: str) -> str:
    """The axes of tifffile in our letters: what is neither slices, times nor channels is images."""
    names = ""
    for axis in axes:
        names += axis if axis in "ZTC" and axis not in names else "N"
    if names.count("N") > 1:
        raise Unreadable(f"TIFF with the axes {axes} is not supported: save one image a page")
    return names


def _named(names: str, lengths: Any, page: Any, pages: tuple[int, ...] | None) -> Planes:
    shape = (*map(int, lengths), int(page.imagelength), int(page.imagewidth))
    return Planes(Layout(f"{names}HW", shape), pages)
