"""The header of a plain DICOM file in one pass over its first bytes.

An index asks each of millions of files for thirty of its elements. pydicom keeps all of them, and
makes an object of each that is asked for. Here the elements that are wanted are kept as bytes and
become plain numbers and words when they are asked for.

Only plain files are read here: with preamble and meta header, little-endian, with pixel data, with
no wanted element in a sequence, and with elements whose form is that of the standard. Anything
else raises `Unusual`, and pydicom reads the file: what is right in an unusual file is decided there
alone. For plain files both give the same (`tests/data/readers/test_dicom_quick.py`).

Source: DICOM PS3.5 7.1 (elements), 7.5 (sequences), 6.2 (value representations).
"""

from __future__ import annotations

import re
from struct import Struct, error
from typing import Any, BinaryIO, NoReturn

from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

from dino_x.data.readers.dicom_elements import (
    IDENTIFIERS,
    OF_HEADERS,
    OF_VALUES,
    PIXEL_DATA,
    SEQUENCES,
)

# Headers are read in pieces of these sizes: most have a few KB, some a private element of 100.
_PIECES = (2**15, 2**18, 2**20)
_DEEPEST = 8  # of sequences in sequences
_MOST_ELEMENTS = 50_000
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD

_explicit = Struct("<HH2sH").unpack_from
_implicit = Struct("<HHL").unpack_from
_long = Struct("<L").unpack_from
_group = Struct("<H").unpack_from

_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
_OF_PIXELS = {b"OB", b"OW", b"OF", b"OD", b"UN"}
_IMPLICIT_SYNTAX = "1.2.840.10008.1.2"
# Little-endian and not deflated: these, and all of images that are compressed one by one.
_PLAIN_SYNTAXES = (
    _IMPLICIT_SYNTAX,
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.",
    "1.2.840.10008.1.2.5",
)

_CHARACTER_SET = 0x00080005
_NAMES = re.compile(rb"[A-Z0-9_ \\-]*\0?")
_PRESENT_ALONE = "RealWorldValueMappingSequence"
_TAGS = {keyword: int(Tag(keyword)) for keyword in OF_HEADERS}
_VR_OF = {tag: dictionary_VR(tag).encode() for tag in _TAGS.values()}
_KEPT = {*_VR_OF, *(int(tag) for tag in IDENTIFIERS)} - {_TAGS[_PRESENT_ALONE]}
_VR_OF |= {int(tag): dictionary_VR(tag).encode() for tag in IDENTIFIERS}
_REFUSED = {int(Tag(keyword)) for keyword in SEQUENCES}
_LOOKED_AT = {_TAGS[_PRESENT_ALONE], _CHARACTER_SET, *_REFUSED}


class Unusual(Exception):  # noqa: N818 - no error: pydicom reads the file
    """A file, or a value of one, that is not plain."""


class Decimal(float):
    """A number with the text that it is written as, which is its text."""

    __slots__ = ("text",)
    text: str

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


class Whole(int):
    """A whole number with the text that it is written as, such as 007, which is its text."""

    text: str

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


class Elements:
    """The elements of a plain file, by keyword, with the values that pydicom gives them.

    Args:
        raw: the bytes of each element that is kept, by its tag.
        tags: the tags of elements that are there and are not kept.
    """

    def __init__(self, raw: dict[int, bytes], tags: set[int]) -> None:
        self._raw, self._tags = raw, tags
        self._values: dict[str, Any] = {}

    def __contains__(self, keyword: str) -> bool:
        tag = _TAGS[keyword]
        return tag in self._raw or tag in self._tags

    def get(self, keyword: str) -> Any:
        """The value of an element; None if there is none. Raises Unusual."""
        if keyword in self._values:
            return self._values[keyword]
        if keyword in OF_VALUES:
            raise Unusual
        tag = _TAGS.get(keyword)
        raw = None if tag is None else self._raw.get(tag)
        value = None if raw is None or tag is None else _CONVERT[_VR_OF[tag]](raw)
        self._values[keyword] = value
        return value

    def identifier(self, tag: int) -> bytes:
        """The bytes of an element of `IDENTIFIERS`, which is removed; empty if there is none."""
        return self._raw.pop(tag, b"")

    def __getattr__(self, keyword: str) -> NoReturn:
        raise Unusual


class Found:
    """What was read of a plain file.

    Attributes:
        elements: its elements.
        syntax: the transfer syntax that it names.
        offset: where the element of its pixel data begins.
        values: where the pixel data begin.
        length: the length of the pixel data, as their element states it.
        explicit: whether the elements name their value representation.
    """

    __slots__ = ("elements", "explicit", "length", "offset", "syntax", "values")

    def __init__(
        self, elements: Elements, syntax: str, place: tuple[int, int, int], explicit: bool
    ) -> None:
        self.elements, self.syntax, self.explicit = elements, syntax, explicit
        self.offset, self.values, self.length = place


def read_quickly(file: BinaryIO) -> Found:
    """Read the header of a plain file, from its beginning. Raises Unusual, OSError."""
    head = b""
    for size in _PIECES:
        more = file.read(size - len(head))
        head += more
        try:
            return _parsed(head)
        except error:  # it goes on behind what was read
            if not more:
                break
    raise Unusual


def _parsed(head: bytes) -> Found:
    """Raises Unusual; struct.error if the header goes on behind these bytes."""
    if head[128:132] != b"DICM":
        raise Unusual
    at, syntax = _meta(head)
    explicit = syntax != _IMPLICIT_SYNTAX
    if explicit == (head[at + 4 : at + 6] not in (_LONG | _SHORT)):
        raise Unusual  # it is encoded otherwise than it says
    raw: dict[int, bytes] = {}
    tags: set[int] = set()
    for _ in range(_MOST_ELEMENTS):
        tag, vr, start, length = _element(head, at, explicit)
        if tag in PIXEL_DATA:
            if explicit and vr not in _OF_PIXELS:
                raise Unusual
            return Found(Elements(raw, tags), syntax, (at, start, length), explicit)
        at = start + length
        if length == _UNDEFINED:
            at = _after_sequence(head, start, explicit, vr)
        if tag in _KEPT:
            raw[tag] = _kept(head, tag, start, at, vr)
        elif tag in _LOOKED_AT or tag < 0x00080000:
            _look_at(tag, head[start:at])
            tags.add(tag)
    raise Unusual


def _kept(head: bytes, tag: int, start: int, end: int, vr: bytes) -> bytes:
    """The bytes of an element that is wanted."""
    if vr and vr != _VR_OF[tag]:
        raise Unusual
    if end > len(head):
        raise error
    return head[start:end]


def _look_at(tag: int, raw: bytes) -> None:
    """Raise Unusual for an element that pydicom must read, or for character sets without names."""
    if tag in _REFUSED or tag < 0x00080000:
        raise Unusual
    if tag == _CHARACTER_SET and _NAMES.fullmatch(raw) is None:
        raise Unusual


def _meta(head: bytes) -> tuple[int, str]:
    """Where the meta header ends, and the transfer syntax that it names."""
    at, syntax = 132, ""
    while _group(head, at)[0] == 2:
        tag, vr, start, length = _element(head, at, True)
        at = start + length
        if tag == 0x00020010:
            if vr != b"UI" or at > len(head):
                raise Unusual
            syntax = head[start:at].decode("latin-1").strip(" \0")
    if not (syntax in _PLAIN_SYNTAXES or syntax.startswith(_PLAIN_SYNTAXES[2])):
        raise Unusual
    return at, syntax


def _element(head: bytes, at: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """The tag, the value representation, the begin and the length of the element at a place."""
    if not explicit:
        group, element, length = _implicit(head, at)
        return group << 16 | element, b"", at + 8, length
    group, element, vr, length = _explicit(head, at)
    if vr in _SHORT:
        return group << 16 | element, vr, at + 8, length
    if vr not in _LONG:
        raise Unusual
    return group << 16 | element, vr, at + 12, _long(head, at + 8)[0]


def _after_sequence(head: bytes, at: int, explicit: bool, vr: bytes, depth: int = 0) -> int:
    """Where a sequence of undefined length ends."""
    if depth > _DEEPEST or (explicit and vr != b"SQ"):
        raise Unusual
    for _ in range(_MOST_ELEMENTS):
        group, element, length = _implicit(head, at)
        tag, at = group << 16 | element, at + 8
        if tag == _END_OF_SEQUENCE and length == 0:
            return at
        if tag != _ITEM:
            raise Unusual
        end = None if length == _UNDEFINED else at + length
        at = _after_item(head, at, end, explicit, depth)
    raise Unusual


def _after_item(head: bytes, at: int, end: int | None, explicit: bool, depth: int) -> int:
    """Where an item of a sequence ends, all of whose elements are of the form of the standard."""
    for _ in range(_MOST_ELEMENTS):
        if at == end:
            return at
        group, element, length = _implicit(head, at)
        if group << 16 | element == _END_OF_ITEM and end is None and length == 0:
            return at + 8
        tag, vr, start, length = _element(head, at, explicit)
        if tag >> 16 == 0xFFFE:
            raise Unusual
        at = start + length
        if length == _UNDEFINED:
            at = _after_sequence(head, start, explicit, vr, depth + 1)
        if end is not None and at > end:
            raise Unusual
    raise Unusual


# ---- values


def _words(raw: bytes) -> Any:
    """A word, or a list of them."""
    if not raw.isascii():
        raise Unusual
    words = raw.decode("ascii").rstrip(" \0").split("\\")
    return words[0] if len(words) == 1 else words


def _word(raw: bytes) -> str:
    words = _words(raw)
    if isinstance(words, list):
        raise Unusual
    return str(words)


def _decimal(text: str) -> Decimal:
    text = text.strip()
    try:
        number = Decimal(text)
    except ValueError:
        raise Unusual from None
    number.text = text
    return number


def _decimals(raw: bytes) -> Any:
    words = _words(raw.strip())
    if not words:
        return None
    return _decimal(words) if isinstance(words, str) else [_decimal(word) for word in words]


def _whole(text: str) -> int:
    text = text.strip()
    try:
        number = int(text)
    except ValueError:
        raise Unusual from None
    if str(number) == text:
        return number
    written = Whole(number)
    written.text = text
    return written


def _wholes(raw: bytes) -> Any:
    words = _words(raw.strip())
    if not words:
        return None
    return _whole(words) if isinstance(words, str) else [_whole(word) for word in words]


_short, _double = Struct("<H").unpack, Struct("<d").unpack


def _unsigned(raw: bytes) -> int | None:
    if not raw:
        return None
    if len(raw) != 2:
        raise Unusual
    return int(_short(raw)[0])


def _real(raw: bytes) -> float | None:
    if not raw:
        return None
    if len(raw) != 8:
        raise Unusual
    return float(_double(raw)[0])


_CONVERT = {
    b"CS": _words,
    b"LO": _words,
    b"TM": _words,
    b"UI": _word,
    b"DS": _decimals,
    b"IS": _wholes,
    b"US": _unsigned,
    b"FD": _real,
}
