"""A quick way over the elements of an ordinary DICOM file, for indexing.

pydicom looks at every element with care, which takes most of the time of reading a header. Here
the elements that no one asked for are stepped over by their length. Only what is plain is taken: a
preamble, little-endian, no compression of the header, every length within what was read, and none
of the wanted elements of undefined length. At anything else, `walk` gives up, and pydicom reads the
file. What was asked for is handed to pydicom as it stands in the file, which converts it.

Source: DICOM PS3.5, sections 7.1 (elements) and 7.5 (sequences); PS3.10, section 7.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

_PORTIONS = (1 << 14, 1 << 20)  # most headers end within the first
_UNDEFINED = 0xFFFFFFFF
_SYNTAX = 0x00020010
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 16

# Value representations whose length takes four bytes, after two that are reserved; and the others.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

_TAG = Struct("<HH")
_TAG_LENGTH = Struct("<HHI")
_LENGTH = Struct("<I")
_SHORT_LENGTH = Struct("<H")


class _GiveUp(Exception):  # noqa: N818 - not an error: pydicom takes over
    """Not as plain as it must be."""


class _TooShort(_GiveUp):
    """It goes on behind what was read."""


@dataclass(frozen=True)
class Walked:
    """What was found before the pixel data.

    Attributes:
        elements: the wanted ones, unconverted; with the transfer syntax in `file_meta`.
        offset: where the element of the pixel data begins.
        length: of the pixel data, as the element says it.
    """

    elements: Dataset
    offset: int
    length: int


def walk(file: BinaryIO, wanted: frozenset[int], pixel_data: frozenset[int]) -> Walked | None:
    """The wanted elements of a file, or None if pydicom must read it.

    Args:
        file: open at its beginning; its position changes.
        wanted: the tags of elements.
        pixel_data: the tags at one of which the walk ends.
    """
    head = b""
    for portion in _PORTIONS:
        head += file.read(portion - len(head))
        try:
            return _walk(head, wanted, pixel_data)
        except _TooShort:
            continue
        except _GiveUp:
            return None
    return None


def _walk(head: bytes, wanted: frozenset[int], pixel_data: frozenset[int]) -> Walked:
    if head[128:132] != b"DICM":
        raise _GiveUp
    at, syntax = _after_meta(head)
    implicit = syntax.is_implicit_VR
    found: dict[BaseTag, DataElement | RawDataElement] = {}
    last = 0
    while True:
        tag, vr, length, start = _element(head, at, implicit)
        if tag <= last:  # they ascend; where they do not, something is wrong
            raise _GiveUp
        last = tag
        if tag in pixel_data:
            elements = Dataset(found)
            elements.file_meta = FileMetaDataset()
            elements.file_meta.TransferSyntaxUID = syntax
            return Walked(elements, at, length)
        if length == _UNDEFINED:
            if tag in wanted:
                raise _GiveUp
            at = _after_sequence(head, start, implicit or vr == b"UN", 0)
            continue
        at = start + length
        if tag in wanted:
            if at > len(head):
                raise _TooShort
            name = vr.decode() if vr else None
            raw = head[start:at]
            base = Tag(tag)
            found[base] = RawDataElement(base, name, length, raw, start, implicit, True)


def _after_meta(head: bytes) -> tuple[int, UID]:
    """Where the elements begin, and what they are encoded in."""
    at, syntax = 132, UID("")
    while at + 4 <= len(head) and head[at : at + 2] == b"\2\0":
        tag, _, length, start = _element(head, at, implicit=False)
        if length == _UNDEFINED:
            raise _GiveUp
        at = start + length
        if tag == _SYNTAX:
            syntax = UID(head[start:at].decode("ascii", "replace").rstrip(" \0"))
    odd = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
    if not syntax.is_transfer_syntax or syntax in odd or syntax.is_private:
        raise _GiveUp
    return at, syntax


def _element(head: bytes, at: int, implicit: bool) -> tuple[int, bytes, int, int]:
    """(tag, value representation, length, where the value begins) of the element at `at`."""
    if at + 12 > len(head):
        raise _TooShort
    if implicit:
        group, number, length = _TAG_LENGTH.unpack_from(head, at)
        return group << 16 | number, b"", length, at + 8
    group, number = _TAG.unpack_from(head, at)
    vr = head[at + 4 : at + 6]
    if vr in _SHORT:
        return group << 16 | number, vr, _SHORT_LENGTH.unpack_from(head, at + 6)[0], at + 8
    if vr in _LONG:
        return group << 16 | number, vr, _LENGTH.unpack_from(head, at + 8)[0], at + 12
    raise _GiveUp


def _after_sequence(head: bytes, at: int, implicit: bool, depth: int) -> int:
    """Where the sequence of undefined length whose items begin at `at` has ended."""
    if depth > _DEEPEST:
        raise _GiveUp
    while True:
        if at + 8 > len(head):
            raise _TooShort
        group, number, length = _TAG_LENGTH.unpack_from(head, at)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise _GiveUp
        at = _after_item(head, at, implicit, depth) if length == _UNDEFINED else at + length


def _after_item(head: bytes, at: int, implicit: bool, depth: int) -> int:
    while True:
        if at + 8 > len(head):
            raise _TooShort
        group, number = _TAG.unpack_from(head, at)
        if group << 16 | number == _ITEM_END:
            return at + 8
        _, vr, length, start = _element(head, at, implicit)
        if length == _UNDEFINED:
            at = _after_sequence(head, start, implicit or vr == b"UN", depth + 1)
        else:
            at = start + length
