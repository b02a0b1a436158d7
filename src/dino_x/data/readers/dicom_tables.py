"""The table that maps stored values to physical ones where a rescale would not do (Modality LUT).

Source: DICOM PS3.3 C.11.1.1.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dino_x.data.image import Unreadable

_UNUSABLE = "damaged DICOM header: its modality LUT has not as many entries as it says"


def table_values(stored: np.ndarray, item: Any, little: bool, signed: bool) -> np.ndarray:
    """Stored values as a modality LUT maps them; those outside have its first or its last entry.

    Args:
        stored: whole values of any shape.
        item: the item of the ModalityLUTSequence.
        little: whether words of the file are little-endian.
        signed: whether stored values have a sign.

    Raises: Unreadable for a table that has not as many entries as it says.
    """
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 65536 or 65536
    # Where the header does not name types, a first value below 0 may have lost its sign.
    first = (first + 32768) % 65536 - 32768 if signed else first % 65536
    table = _entries(item.LUTData, count, bits, little)
    return table[np.clip(stored.astype(np.int64) - first, 0, count - 1)]


def _entries(data: Any, count: int, bits: int, little: bool) -> np.ndarray:
    """The entries: of 16 bits, or of 8 that are one a word or two a word."""
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data, np.int64)).astype("<u2").tobytes()
        little = True
    if len(data) >= 2 * count:
        entries = np.frombuffer(data, "<u2" if little else ">u2", count)
    elif bits <= 8 and len(data) >= count:
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2")
        entries = words.astype("<u2").view(np.uint8)[:count]
    else:
        raise Unreadable(_UNUSABLE)
    if len(entries) < count:
        raise Unreadable(_UNUSABLE)
    return entries.astype(np.uint16)
