"""Checkpoints: whole or not there at all, and loaded without running any pickled code."""

import os
from pathlib import Path
from typing import Any

import torch

from dino_x.errors import UserError

PATTERN = "step-{:08d}.pt"


def write_atomically(path: Path, write: Any) -> None:
    """``write(temporary path)``, then rename: a crash leaves the old file or the new, never half.

    Raises: OSError if it cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after ``step`` finished steps and remove all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PATTERN.format(step)
    write_atomically(path, lambda temporary: torch.save({"step": step, **state}, temporary))
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint, or None if there is none.

    Raises: UserError if it cannot be read, naming it.
    """
    paths = checkpoints(folder)
    if not paths:
        return None
    try:
        return torch.load(paths[-1], map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(
            f"checkpoint {paths[-1]} is damaged ({type(error).__name__}); remove it to resume from"
            " the one before"
        ) from error
