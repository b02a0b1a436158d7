"""What features depend on: the network, and the files. Features of others are not mixed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from dino_x.data.image import ImageRef
from dino_x.data.readers.several_files import state_of
from dino_x.data.storage.archives import is_remote
from dino_x.data.storage.member import file_of
from dino_x.evaluation.backbone import LoadedModel


def fingerprint(model: LoadedModel) -> str:
    """A hash of a network's weights and of its preparation of images."""
    digest = hashlib.blake2b(repr(model.preparation).encode(), digest_size=16)
    for name, tensor in sorted(model.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of_images(rows: Sequence[ImageRef]) -> str:
    """Changes if images are added or removed, or a file on a disk is changed."""
    digest = hashlib.blake2b(digest_size=16)
    states: dict[Path, str] = {}
    for row in rows:
        file = file_of(row.path)
        if file not in states:
            states[file] = state_of_file(file, row.format)
        line = f"{row.path}|{row.frame}|{row.height}|{row.width}|{states[file]}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def state_of_file(file: Path, format: str | None) -> str:
    """Size and time of change of a file and of its values; nothing for an object in a store."""
    if is_remote(file):
        return ""
    try:
        size, time = state_of(file, format)
    except OSError:
        return "missing"
    return f"{size} {time}"
