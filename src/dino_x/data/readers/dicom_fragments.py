"""The fragments of compressed pixel data: where each frame lies, whatever the tables say.

Source: DICOM PS3.5 A.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, RLELossless

from dino_x.data.image import Unreadable
from dino_x.data.readers.codestream import check_codestream, has_rgb_transform

# The elements of a header that its pixel data are decoded with.
_OF_PIXELS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip


@dataclass(frozen=True)
class Fragments:
    """The fragments of a file.

    Attributes:
        places: where the bytes of each begin in the file, and how many they are.
        images: how many of them begin a compressed image.
    """

    places: tuple[tuple[int, int], ...]
    images: int


def find_fragments(
    file: BinaryIO, offset: int, syntax: UID, size: tuple[int, int], samples: int
) -> Fragments:
    """Find the fragments, and check that each compressed image is what the header says.

    Args:
        file: the file.
        offset: where the pixel data begin, with the table of offsets.
        syntax: the transfer syntax.
        size: rows and columns, by the header.
        samples: samples a pixel, by the header.

    Raises: Unreadable if they exceed the file, or are not of this size.
    """
    end = file.seek(0, 2)
    places: list[tuple[int, int]] = []
    images, table = 0, True
    while offset < end:
        file.seek(offset)
        item = file.read(8)
        tag, length = item[:4], int.from_bytes(item[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return Fragments(tuple(places), images)
        if tag != b"\xfe\xff\x00\xe0" or offset + 8 + length > end:
            break
        if not table:
            begins = check_codestream(file, offset + 8, length, size, samples)
            images += begins or syntax == RLELossless
            places.append((offset + 8, length))
        table = False
        offset += 8 + length
    if offset == end:  # some writers leave out the delimiter at the end
        return Fragments(tuple(places), images)
    raise Unreadable("truncated or damaged: the compressed pixel data has no end")


def frame_alone(file: BinaryIO, elements: Any, place: tuple[int, int]) -> Dataset:
    """One frame that is one fragment, as a data set of its own.

    Tables of offsets are not looked at: many are zeros, too short or wrong.

    Args:
        file: the file.
        elements: its header.
        place: where the fragment begins, and its length.
    """
    file.seek(place[0])
    frame = Dataset()
    frame.file_meta = elements.file_meta
    for keyword in _OF_PIXELS:
        if elements.get(keyword) is not None:
            setattr(frame, keyword, elements.get(keyword))
    data = file.read(place[1])
    if has_rgb_transform(data):  # some headers still name the colours of before it was encoded
        frame.PhotometricInterpretation = "RGB"
    frame.PixelData = encapsulate([data], has_bot=False)
    frame["PixelData"].VR = "OB"
    return frame
