"""Files of weights: one state dict, without the wrappers and prefixes that trainers put around it.

Checkpoints of DINO, DINOv2 and DINOv3 hold a teacher and a student, each with its heads; wrappers
for several GPUs and other trainers put words before every name. What counts is where ``cls_token``
and ``patch_embed.proj.weight`` lie side by side.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dino_x.errors import UserError

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
WRAPPERS = ("teacher", "teacher_backbone", "model_ema", "student", "model", "state_dict")
TOKEN, KERNELS = "cls_token", "patch_embed.proj.weight"
TEACHER, STUDENT = ("teacher", "ema"), "student"


def read_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a file, without wrappers and prefixes; no pickled code is run.

    Of several backbones in a file the teacher's is taken, which is what is evaluated.

    Returns: the tensors, those of the backbone without their prefix, and what was taken if there
        was a choice, in words.

    Raises: UserError if it is no such file.
    """
    state = _unwrapped(_content(path))
    prefixes = prefixes_of(state)
    if not prefixes:
        missing = next((needed for needed in (TOKEN, KERNELS) if needed not in state), TOKEN)
        raise UserError(
            f"{path} is no DINOv2 or DINOv3 ViT as Meta released them: it has no '{missing}'"
        )
    prefix = prefixes[0]
    backbone = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    others = tuple(other for other in prefixes[1:] if not prefix.startswith(other))
    for name, value in state.items():  # heads and the like, which are then named as not used
        if not name.startswith((prefix, *others)) and name not in backbone:
            backbone[name] = value
    if not others:
        return backbone, []
    return backbone, [f"of {len(others) + 1} backbones in the file, '{prefix.rstrip('.')}'"]


def prefixes_of(state: Mapping[str, Any]) -> list[str]:
    """What stands before the names of each backbone in a state dict; a teacher's comes first.

    >>> names = ["student.cls_token", "student.patch_embed.proj.weight"]
    >>> prefixes_of(dict.fromkeys(names))
    ['student.']
    """
    found = []
    for name in state:
        prefix = name.removesuffix(TOKEN)
        at_a_word = prefix == "" or prefix.endswith(".")
        if name.endswith(TOKEN) and at_a_word and prefix + KERNELS in state:
            found.append(prefix)

    def order(prefix: str) -> tuple[bool, bool, bool, int]:
        is_teacher = any(word in prefix.lower() for word in TEACHER)
        return prefix != "", not is_teacher, STUDENT in prefix.lower(), len(prefix)

    return sorted(found, key=order)


def _content(path: Path) -> Any:
    """What a file holds. Raises UserError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DINO's checkpoints hold their command line, which is a list of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, where the file was made up
        raise UserError(
            f"{path} is no file of plain tensors ({type(error).__name__}); save its state dict"
            " alone, with torch.save(model.state_dict(), FILE)"
        ) from error


def _unwrapped(content: Any, depth: int = 4) -> dict[str, Tensor]:
    """The tensors of a file's content, or of the first wrapper in it; none if it has no names."""
    if not isinstance(content, Mapping):
        return {}
    inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    if inner and depth > 0:
        return _unwrapped(inner[0], depth - 1)
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
