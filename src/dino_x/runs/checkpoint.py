"""Checkpoints: whole or not there at all, and loaded without running any pickled code."""

import errno
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from string import hexdigits
from typing import Any

import torch
from safetensors import SafetensorError

from dino_x.errors import UserError
from dino_x.files import write_atomically
from dino_x.model.pretrained import first_line

PATTERN = "step-{:08d}.pt"
NOT_WRITTEN = (OSError, SafetensorError)  # what a full or lost disk raises
HEX_DIGITS = 64  # of SHA-256


def checkpoints(folder: Path, up_to: int | None = None) -> list[Path]:
    """Checkpoints in a folder, oldest first; those of steps up to one, if that is given."""
    found = sorted(folder.glob("step-*.pt"))
    return found if up_to is None else [path for path in found if path <= named(folder, up_to)]


def steps_of(folder: Path) -> list[int]:
    """The steps that there are checkpoints of, rising."""
    return [int(path.stem.removeprefix("step-")) for path in checkpoints(folder)]


def named(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / PATTERN.format(step)


def save(
    folder: Path, step: int, state: dict[str, Any], keep: int, also: Iterable[int] = ()
) -> Path:
    """Write the state after ``step`` finished steps and its checksum.

    The newest ``keep`` are kept, and those of the steps ``also``. Later ones than this are of a
    future that is given up, as after going back to an earlier one, and are removed too.

    Raises: OSError if it cannot be written; all that were there still are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = named(folder, step)

    def write(temporary: Path) -> None:
        try:
            torch.save({"step": step, **state}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.ENOSPC, f"cannot be written ({error})") from error
        digests = [checksum(temporary)]
        if path.is_file():  # either may be there after a crash
            digests += written_checksums(path)[:1]
        text = "".join(f"{digest}\n" for digest in digests)
        write_atomically(checksum_file(path), lambda file: file.write_text(text))

    write_atomically(path, write)
    kept = checkpoints(folder, step)[-keep:] + [named(folder, other) for other in also]
    for old in set(checkpoints(folder)) - set(kept):
        old.unlink()
        checksum_file(old).unlink(missing_ok=True)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove checksums without a checkpoint, which a run leaves that is killed between the two."""
    saved = {checksum_file(path) for path in checkpoints(folder)}
    for file in set(folder.glob("step-*.sha256")) - saved:
        file.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    """Where a checkpoint's checksum is."""
    return path.with_suffix(".sha256")


def written_checksums(path: Path) -> list[str]:
    """The checksums in the file beside a checkpoint; none if that cannot be read.

    A damaged file of checksums must not cost a checkpoint that is whole: torch finds out itself
    whether it can be loaded.
    """
    try:
        words = checksum_file(path).read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
    return [word for word in words if len(word) == HEX_DIGITS and set(word) <= set(hexdigits)]


def load_newest(
    folder: Path,
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
    up_to: int | None = None,
) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, or None if there is none at all.

    Args:
        folder: of the checkpoints.
        device: where to put the tensors.
        say: told of damaged ones that are passed over.
        up_to: do not look at those of later steps.

    Raises: UserError if all of them are damaged, naming the newest.
    """
    damaged = ""
    for path in reversed(checkpoints(folder, up_to)):
        try:
            state = load(path, device)
        except Exception as error:  # torch raises many kinds for a damaged file
            damaged = damaged or f"checkpoint {path} is damaged ({first_line(error)})"
            continue
        if damaged:
            say(f"{damaged}; continuing from the one before, {path.name}")
        return state
    if damaged:
        raise UserError(f"{damaged}, and there is no other that is whole; start a new run")
    return None


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint, checked against its checksum; no pickled code is run.

    Raises: ValueError for another checksum; whatever torch raises for a damaged file.
    """
    expected = written_checksums(path)
    if expected and checksum(path) not in expected:
        raise ValueError("its checksum is another")
    return torch.load(path, map_location=device, weights_only=True)
