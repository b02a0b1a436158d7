"""TIFF through tifffile: each page, slice or time is an image.

- What a page, or a plane that follows one without a header of its own, is, the file says (OME,
  ImageJ, tifffile's own description); where it does not, ``data.axes`` does.
- Stored values: 0..255 for 8-bit pages, 0..65535 for 16-bit ones, float pages as they are; the same
  whatever the compression. White is made the larger value where the file says that zero is white.
- Palettes and YCbCr become RGB. Alpha is laid over black. All other channels are kept.
- The tag of orientation is ignored: rows are rows of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image as Pillow
from tifffile import COMPRESSION, PHOTOMETRIC, RESUNIT

from dino_x.data.identity import key
from dino_x.data.image import (
    DEFAULT,
    Image,
    ImageRef,
    Reading,
    Unreadable,
    channels_first,
    check_channels,
    check_count,
    check_size,
)
from dino_x.data.readers.picture import to_array
from dino_x.data.readers.tiff_pages import UNPACKED_HERE, stored_values, values_at
from dino_x.data.readers.tiff_planes import Planes, planes_of
from dino_x.data.storage.member import whereabouts
from dino_x.data.windowing import choose_window

_SHOWN = {
    PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.PALETTE,
    PHOTOMETRIC.YCBCR, PHOTOMETRIC.SEPARATED,
}  # fmt: skip
_BY_PILLOW = {
    COMPRESSION.JPEG, COMPRESSION.OJPEG, COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4,
    COMPRESSION.CCITT_T6,
}  # fmt: skip
_ASSOCIATED, _UNASSOCIATED = 1, 2  # kinds of alpha: with the first, colours are multiplied already
_ORIENTATION = 0x0112


def refs(path: Path, reading: Reading = DEFAULT) -> list[ImageRef]:
    """Find the images of a file, without thumbnails and masks. Raises Unreadable."""
    try:
        with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            check_count(min(1, len(tiff.pages)))
            planes = planes_of(tiff, reading.axes)
            found = _ordinary(path, tiff) if planes is None else _stacked(path, tiff, planes)
    except Unreadable:
        raise
    except Exception:
        raise Unreadable("damaged TIFF header") from None
    check_count(len(found))
    if len(found) > 1:  # pages of one file are likely slices of one volume, or frames of one film
        series = key("series", whereabouts(path))
        found = [replace(ref, series=series) for ref in found]
    return found


def _ordinary(path: Path, tiff: Any) -> list[ImageRef]:
    """Each page is an image."""
    found = []
    for number, page in enumerate(map(_whole, tiff.pages)):
        check_count(number + 1)
        if not (page.is_reduced or page.is_mask or page.photometric == PHOTOMETRIC.MASK):
            found.append(_ref(path, number, page))
    return found


def _stacked(path: Path, tiff: Any, planes: Planes) -> list[ImageRef]:
    check_count(planes.layout.images)
    first = _ref(path, 0, tiff.pages[0])
    channels = planes.layout.size("C") * first.channels
    check_channels(channels, first.height * first.width)
    first = replace(first, channels=channels, axis=planes.layout.axes)
    return [replace(first, frame=number) for number in range(planes.layout.images)]


def _ref(path: Path, number: int, page: Any) -> ImageRef:
    height, width = int(page.imagelength), int(page.imagewidth)
    check_size(height, width)
    channels = _channels(page)
    check_channels(int(page.samplesperpixel), height * width)
    return ImageRef(
        path=path,
        frame=number,
        height=height,
        width=width,
        channels=channels,
        spacing_mm=_spacing(page),
        format="TIFF",
        bits=page.bitspersample if isinstance(page.bitspersample, int) else None,
        kind="slide_label" if _is_label(page) else None,
    )


def read(ref: ImageRef) -> Image:
    """Decode one image. Raises Unreadable."""
    try:
        with ref.path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            if ref.axis is None:
                page: Any = tiff.pages[ref.frame]
                values = _page_values(page, ref)
            else:
                page = tiff.pages[0]
                values = _stack_values(tiff, ref)
            spacing = _spacing(page)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("needs more memory than there is") from None
    except Exception:
        raise Unreadable("truncated or damaged TIFF") from None
    pixels = channels_first(values)
    bits = 8 if values.dtype == np.uint8 else None
    return Image(pixels, choose_window(pixels, bits=bits), spacing)


def _stack_values(tiff: Any, ref: ImageRef) -> np.ndarray:
    """One image of a file whose pages are not one image each, [H, W, C]."""
    asked = ref.axis if ref.axis is not None and "C" in ref.axis else None
    planes = planes_of(tiff, asked)
    if planes is None or ref.frame >= planes.layout.images:
        raise Unreadable(f"image {ref.frame} of a file that has fewer")
    page: Any = tiff.pages[0]
    check_size(page.imagelength, page.imagewidth)
    parts = []
    for plane in planes.of_image(ref.frame):
        if planes.pages is not None:
            parts.append(_page_values(_whole(tiff.pages[planes.pages[plane]]), ref))
        elif page.imagedepth > 1:
            _check_unpacking(page)
            parts.append(_shown(stored_values(page, plane), page))
        else:
            parts.append(_shown(values_at(page, plane), page))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _whole(page: Any) -> Any:
    """A page with all of its tags; tifffile keeps some pages of a series without them."""
    return page.aspage() if isinstance(page, tifffile.TiffFrame) else page


def _page_values(page: Any, ref: ImageRef) -> np.ndarray:
    """One page as [H, W, C], with larger values brighter."""
    check_size(page.imagelength, page.imagewidth)
    if page.photometric not in _SHOWN:
        name = getattr(page.photometric, "name", page.photometric)
        raise Unreadable(f"TIFF of {name} colours is not supported: save it as RGB")
    if page.compression in UNPACKED_HERE and page.photometric != PHOTOMETRIC.SEPARATED:
        whole = page.photometric != PHOTOMETRIC.YCBCR or page.subsampling in (None, (1, 1))
        if whole:
            return _shown(stored_values(page), page)
    return _decode_by_pillow(page, ref)


def _check_unpacking(page: Any) -> None:
    if page.compression not in UNPACKED_HERE:
        name = COMPRESSION(page.compression).name
        raise Unreadable(f"TIFF volumes with {name} compression are not supported: use deflate")


def _shown(values: np.ndarray, page: Any) -> np.ndarray:
    """Stored values [H, W, samples] as they are to be seen, [H, W, C]."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    if page.photometric == PHOTOMETRIC.PALETTE:
        colours = page.colormap[:, values[:, :, 0]]
        if page.colormap.max() > 255:  # 16 bits by the specification; some writers use the lower 8
            colours = colours >> 8
        return colours.astype(np.uint8).transpose(1, 2, 0)
    if page.photometric == PHOTOMETRIC.YCBCR:
        if values.dtype != np.uint8 or values.shape[2] != 3:
            raise Unreadable("TIFF of YCbCr with more than 8 bits is not supported: save it as RGB")
        return np.asarray(Pillow.fromarray(values, "YCbCr").convert("RGB"))
    alpha = _alpha(page)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        values = _inverted(values)
    count = int(page.samplesperpixel) - len(page.extrasamples or ())
    colours = values[:, :, :count]
    for number, kind in alpha:
        if kind == _UNASSOCIATED:
            colours = _over_black(colours, values[:, :, number : number + 1])
    unused = {number for number, _ in alpha}
    further = [number for number in range(count, values.shape[2]) if number not in unused]
    return np.concatenate([colours, values[:, :, further]], axis=2) if further else colours


def _alpha(page: Any) -> list[tuple[int, int]]:
    """The channels that are alpha, and which kind of it."""
    extra = [int(kind) for kind in page.extrasamples or ()]
    first = int(page.samplesperpixel) - len(extra)
    return [
        (first + number, kind)
        for number, kind in enumerate(extra)
        if kind in (_ASSOCIATED, _UNASSOCIATED)
    ]


def _channels(page: Any) -> int:
    """The number of channels of a page once it is decoded."""
    if page.photometric in (PHOTOMETRIC.PALETTE, PHOTOMETRIC.YCBCR, PHOTOMETRIC.SEPARATED):
        return 3
    return int(page.samplesperpixel) - len(_alpha(page))


def _over_black(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    if colours.dtype.kind == "f":
        return colours * alpha
    most = np.iinfo(alpha.dtype).max
    return np.rint(colours * (alpha / most)).astype(colours.dtype)


def _inverted(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "u":
        return np.iinfo(values.dtype).max - values
    finite = values[np.isfinite(values)]
    return finite.max() + finite.min() - values if finite.size else values


def _decode_by_pillow(page: Any, ref: ImageRef) -> np.ndarray:
    """Decode JPEG, fax codes and CMYK by Pillow, which would cut 16-bit colour to 8 bits."""
    known = page.compression in _BY_PILLOW or page.compression in UNPACKED_HERE
    name = getattr(page.compression, "name", str(page.compression))
    deep = isinstance(page.bitspersample, tuple) or page.bitspersample > 8
    if deep and page.samplesperpixel > 1 and page.compression in UNPACKED_HERE:
        raise Unreadable("CMYK or YCbCr TIFF of 16 bits is not supported: save it as RGB")
    if deep and page.samplesperpixel > 1:
        raise Unreadable(f"16-bit colour TIFF with {name} compression is not supported: use LZW")
    try:
        with ref.path.open("rb") as file, Pillow.open(file, formats=("TIFF",)) as picture:
            picture.seek(page.index)
            values = _as_stored(to_array(picture), page)
    except Exception:
        if known:
            raise
        raise Unreadable(f"TIFF with {name} compression is not supported: use deflate") from None
    # Pillow has turned white-is-zero around for 8 bits, and not for 16.
    inverted = page.photometric == PHOTOMETRIC.MINISWHITE and values.dtype != np.uint8
    return _inverted(values) if inverted else values


def _as_stored(turned: np.ndarray, page: Any) -> np.ndarray:
    """A picture as its rows lie in the file: Pillow has turned it by the tag of orientation."""
    tag = page.tags.get(_ORIENTATION)
    return _BACK.get(int(tag.value) if tag else 1, lambda picture: picture)(turned)


# The opposite of what each orientation asks for.
_BACK: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda picture: picture[:, ::-1],
    3: lambda picture: picture[::-1, ::-1],
    4: lambda picture: picture[::-1],
    5: lambda picture: picture.swapaxes(0, 1),
    6: lambda picture: np.rot90(picture),
    7: lambda picture: picture[::-1, ::-1].swapaxes(0, 1),
    8: lambda picture: np.rot90(picture, -1),
}


def _is_label(page: Any) -> bool:
    """Whether a page of a slide scanner is a photograph of the slide's label, or of the slide."""
    lines = str(page.description or "")[:2000].lower().splitlines()
    return any(line.startswith(("label ", "macro ")) for line in lines)


def _spacing(page: Any) -> tuple[float, float] | None:
    """The (row, column) spacing in mm from the resolution tags, if they are in centimetres.

    Inches are the unit of printers and of defaults (72 dpi), and say nothing about anatomy.
    """
    if page.resolutionunit != RESUNIT.CENTIMETER:
        return None
    across, down = page.resolution
    return (10.0 / down, 10.0 / across) if across > 0 and down > 0 else None
