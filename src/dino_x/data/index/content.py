"""What files hold: short keys of their content, to find exact copies and files that have moved."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dino_x.data.image import Unreadable
from dino_x.data.readers.several_files import values_in
from dino_x.data.storage.member import size_of
from dino_x.errors import UserError

KEY_BYTES = 16
WHOLE_UP_TO = 256 * 1024  # bytes; of a larger file, some blocks are looked at
BLOCK = 16 * 1024
BLOCKS = 16
UNKNOWN = b""  # the key of a file that cannot be read


def content_key(path: Path) -> bytes:
    """16 bytes that two files share if they hold the same.

    Files of up to 256 KiB are read as a whole. Of a larger one the size counts, and 16 blocks of
    16 KiB that are spread evenly from its first to its last byte. A header whose values lie in
    another file counts with that file.

    Args:
        path: a file, or a member of an archive.

    Returns: the key; empty if the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    try:
        _update(digest, path)
        values = values_in(path)
        if values is not None:
            _update(digest, values)
    except (OSError, Unreadable, UserError):
        return UNKNOWN
    return digest.digest()


def _update(digest: hashlib.blake2b, path: Path) -> None:
    """Add the size of a file and its bytes, or blocks of these."""
    size = size_of(path)
    digest.update(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE_UP_TO:
            digest.update(file.read(size))
            return
        for start in np.linspace(0, size - BLOCK, BLOCKS).astype(int).tolist():
            file.seek(start)
            digest.update(file.read(BLOCK))


def content_keys(paths: Iterable[Path], workers: int | None = None) -> dict[Path, bytes]:
    """The key of each file; those that cannot be read are left out.

    Args:
        paths: files; each is read once.
        workers: threads that read; the number of cores if None.
    """
    once = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        keys = pool.map(content_key, once)
        return {path: key for path, key in zip(once, keys, strict=True) if key != UNKNOWN}


def joined(keys: Iterable[bytes]) -> bytes:
    """Keys one after another, sorted, each once."""
    return b"".join(sorted({key for key in keys if len(key) == KEY_BYTES}))


def apart(content: bytes) -> set[bytes]:
    """The opposite of ``joined``. Raises ValueError for what is not a whole number of keys."""
    if len(content) % KEY_BYTES:
        raise ValueError(f"{len(content)} bytes are no keys of {KEY_BYTES} bytes")
    return {content[at : at + KEY_BYTES] for at in range(0, len(content), KEY_BYTES)}
