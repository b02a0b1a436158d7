"""Values of tables as texts: labels and what stands beside them, whatever their types."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dino_x.data.index.label_kinds import BETWEEN

FEATURES = b"huggingface"  # the entry of the metadata that describes columns
# What columns are called, in lower case, without spaces and marks. The first that is there counts.
CALLED = {
    "path": ("path", "filepath", "filename", "file", "imagepath", "imagefile", "imagename",
             "imageindex"),
    "patient": ("patient", "patientid", "patientkey", "subject", "subjectid"),
    "group": ("group",),
    "slide": ("slide", "slideid"),
    "split": ("split",),
    "volume": ("volume", "volumeid"),
    "mask": ("mask",),
}  # fmt: skip
MISSING = {"", "nan", "<na>", "na", "n/a", "nat", "null"}  # in lower case: nothing is known

Names = Mapping[str, Sequence[str]]  # of the classes, by column


def plain(name: str) -> str:
    """The name of a column in lower case, its letters and digits alone.

    >>> plain("Patient_ID")
    'patientid'
    """
    return re.sub(r"[\W_]+", "", name.lower())


def column_called(name: str, header: Sequence[str]) -> str | None:
    """The column that a header has for one of ``CALLED``; None if it has none.

    >>> column_called("patient", ["Image Index", "Patient ID"])
    'Patient ID'
    """
    if name in header:
        return name
    plains = [plain(of) for of in header]
    for spelling in CALLED[name]:
        if spelling in plains:
            return header[plains.index(spelling)]
    return None


def known(value: str) -> str:
    """A value, or nothing where it says that nothing is known, such as NaN and NA."""
    return "" if value.lower() in MISSING else value


def names_of_classes(metadata: Mapping[bytes, bytes] | None) -> Names:
    """The names of the classes by column, as Hugging Face's datasets keep them; {} without any."""
    try:
        features = json.loads((metadata or {})[FEATURES])["info"]["features"]
        found = {}
        for column, feature in features.items():
            described = feature
            while isinstance(described, dict) and "names" not in described:
                described = described.get("feature")  # of a list
            if isinstance(described, list) and len(described) == 1:
                described = described[0]
            if isinstance(described, dict):
                found[str(column)] = [str(name) for name in described["names"]]
        return found
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def texts(column: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """The values of a column as texts; whole numbers are names where there are names."""
    return [text(value, names) for value in column]


def text(value: Any, names: Sequence[str] | None) -> str:
    """One value; a list is several labels with bars between them, nothing and -1 are empty.

    >>> text(["mass", "nodule"], None), text(17.0, None), text(float("nan"), None)
    ('|mass|nodule|', '17', '')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [text(one, names) for one in value]
        return BETWEEN + BETWEEN.join(parts) + BETWEEN * bool(parts)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace").strip()
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return str(int(value)) if value.is_integer() else str(value)
    if names and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else ""
    return str(value).strip()
