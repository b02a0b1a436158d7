"""Values of DICOM elements: the plain ones converted here, all others by pydicom.

pydicom converts with care and takes its time: of a header that is read for the index it would take
more than finding the elements. What is not as plain as can be is left to it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

_TEXTS = frozenset({"CS", "UI"})  # in the default character set whatever the file's is


def value(elements: Dataset, keyword: str) -> Any:
    """The value of an element, as `elements.get(keyword)` gives it: a number, a text, a list.

    Raises: what pydicom raises for a value that its kind cannot have.
    """
    tag, kind = _known(keyword)
    raw = elements.get_item(tag)
    if raw is None:
        return None
    if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
        try:
            return _plain(raw, kind)
        except ValueError:
            pass
    return elements[tag].value


@cache
def _known(keyword: str) -> tuple[BaseTag, str]:
    tag = Tag(keyword)
    return tag, dictionary_VR(tag)


def _plain(raw: RawDataElement, kind: str) -> Any:
    """The value of an element that is plain. Raises ValueError for any other."""
    data: bytes = raw.value  # type: ignore[assignment]
    if raw.VR not in (None, kind):
        raise ValueError
    if kind == "US" and len(data) == 2:
        return int.from_bytes(data, "little" if raw.is_little_endian else "big")
    if kind in ("IS", "DS"):
        parts = [float(part) for part in data.rstrip(b"\0").decode("ascii").split("\\")]
        if not all(math.isfinite(part) for part in parts):
            raise ValueError
        if kind == "IS":
            parts = [_whole(part) for part in parts]
        return parts[0] if len(parts) == 1 else parts
    if kind in _TEXTS and data and b"\\" not in data:
        return data.decode("ascii").strip(" \0")
    raise ValueError


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError
    return int(number)


def number(value: Any) -> float | None:
    """The first number of an element, or None where there is none."""
    if isinstance(value, MultiValue | list):
        value = value[0] if len(value) else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def numbers(value: Any, count: int) -> list[float] | None:
    """An element of exactly `count` finite numbers, or None."""
    try:
        found = [float(part) for part in value]
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None
