"""What a file is that is called an image and is none that is read: the reason, and the way out."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dino_x.data.readers.nifti import is_nifti, unpacked_head

_GZIP = b"\x1f\x8b"
_ANALYZE = (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # 348, the length of its header
_PACKED = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
}
_TO_PNG = "is not supported: save it as PNG"
_BEGINNINGS = {
    b"version https://git-lfs": "not an image but a pointer of Git LFS: git lfs pull fetches it",
    b"/annex/objects/": "not an image but a pointer of git-annex: datalad get fetches it",
    b"\xff\x0a": f"JPEG XL {_TO_PNG}",
    b"\0\0\0\x0cJXL \r\n\x87\n": f"JPEG XL {_TO_PNG}",
    b"\x89HDF\r\n\x1a\n": "HDF5 is not supported: convert it to .nii.gz (MINC: mnc2nii) or .npy",
    b"CDF\x01": "NetCDF is not supported: convert it to .nii.gz (MINC: mnc2nii) or .npy",
    b"%PDF": "not an image but a PDF: save its pictures as PNG",
}


def instead(head: bytes) -> str | None:
    """What a file is by its first bytes, and what to do; None if that is not known.

    >>> instead(b"P5 64 48 255 ")
    'PNM is not supported: save it as PNG'
    """
    for begins, what in _PACKED.items():
        if head.startswith(begins):
            return f"not an image but {what}: unpack it first"
    for begins, what in _BEGINNINGS.items():
        if head.startswith(begins):
            return what
    if head.startswith(_GZIP):
        inside = unpacked_head(head)
        return "gzip within gzip: gunzip it once" if inside.startswith(_GZIP) else None
    if head[4:8] == b"ftyp":
        return f"HEIC, AVIF or a film {_TO_PNG}"
    if re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE):
        return "not an image but a web page: download it again"
    if re.match(rb"P[1-6]\s+\d", head):
        return f"PNM {_TO_PNG}"
    if head.startswith(_ANALYZE) and not is_nifti(head):
        return "Analyze does not say which side is left: convert it to .nii.gz with one that knows"
    return None


def not_fetched(path: Path) -> str | None:
    """The reason for a link that leads to a file which git-annex has not fetched; else None."""
    try:
        target = os.readlink(path)
    except (OSError, ValueError):
        return None
    if ".git/annex/objects/" not in target.replace("\\", "/"):
        return None
    return "is in git-annex and not on this disk: datalad get (or git annex get) fetches it"
