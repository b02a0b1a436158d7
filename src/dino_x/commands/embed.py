"""Features of the images below some paths, by one model.

N images, M that can be decoded, D features of a token, S the side of the square that the network
sees, P x P patches in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from dino_x.data.image import ImageRef
from dino_x.data.index.index import build_index
from dino_x.errors import UserError
from dino_x.evaluation.backbone import LoadedModel
from dino_x.evaluation.embed import (
    Encoder,
    ImagePreparation,
    backbone_encoder,
    cls_and_mean,
    encode,
)
from dino_x.model.families import registers_of
from dino_x.progress import progress_bar
from dino_x.runs.folder import reading_of


@dataclass(frozen=True)
class Tokens:
    """What is kept of a network's output.

    Attributes:
        width: D.
        side: P, patches a side.
    """

    width: int
    side: int

    def split(self, flat_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """CLS [M, D], mean patch [M, D] and, if it is there, the grid of patches [M, P, P, D]."""
        width = self.width
        cls_MD, mean_MD, rest = (
            flat_MF[:, :width],
            flat_MF[:, width : 2 * width],
            flat_MF[:, 2 * width :],
        )
        if not rest.shape[1]:
            return cls_MD, mean_MD, None
        return cls_MD, mean_MD, rest.reshape(len(rest), self.side, self.side, width)


def encoder_of(name: str, model: LoadedModel, *, grid: bool = False) -> tuple[Encoder, Tokens]:
    """The encoder that gives CLS and mean patch features, and the patches themselves if asked.

    Args:
        name: what the user called the model.
        model: the network and its preparation of images.
        grid: whether the patches come, too.

    Returns: the encoder, whose features are flat [B, 2 * D] or [B, 2 * D + P * P * D]; and how to
        take them apart.

    Raises: UserError for a network without patches.
    """
    preparation, device = model.preparation, next(model.model.parameters()).device
    first_patch = 1 + registers_of(model.config)

    both = cls_and_mean(first_patch - 1)

    def with_grid(output: Any) -> torch.Tensor:
        return torch.cat([both(output), output.last_hidden_state[:, first_patch:].flatten(1)], 1)

    encoder = backbone_encoder(
        model.model,
        image_size=preparation.image_size,
        mean=preparation.mean,
        std=preparation.std,
        device=device,
        precision="fp32",
        slices=preparation.slices,
        grey=preparation.grey,
        read_out=with_grid if grid else both,
    )
    return encoder, tokens_of(name, model, first_patch)


def tokens_of(name: str, model: LoadedModel, first_patch: int) -> Tokens:
    """The width of a token, and how many patches there are a side, from the model's own output."""
    size, channels = model.preparation.image_size, model.preparation.channels
    parameter = next(model.model.parameters())
    blank = torch.zeros(1, channels, size, size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        output = model.model(pixel_values=blank)
    patches, width = output.last_hidden_state[:, first_patch:].shape[1:]
    side = round(patches**0.5)
    if side * side != patches or patches == 0 or output.pooler_output.shape[1] != width:
        raise UserError(f"{name} gives no square of patches beside its CLS token")
    return Tokens(int(width), side)


def embed_images(
    name: str, model: LoadedModel, paths: list[Path], batch_size: int, console: Console
) -> tuple[np.ndarray, np.ndarray, list[ImageRef], list[ImageRef]]:
    """CLS and mean patch features, prepared as in training and evaluation.

    Args:
        name: of the model; a RUN knows how its images were read.
        model: the network and its preparation of images.
        paths: folders, files or indexes.
        batch_size: images that go through the network together.
        console: where progress is shown.

    Returns: CLS features [M, D], mean patch features [M, D], the M images, and those that could not
        be decoded.

    Raises: UserError if there are no images.
    """
    index = build_index(paths, verify="headers", reading=reading_of(name), take=["all"])
    encoder, tokens = encoder_of(name, model)
    seeing = ImagePreparation(model.preparation.windows, index.rows)
    with progress_bar(console, "embedding") as progress:
        features, unreadable = encode(
            {name: encoder}, index.rows, batch_size=batch_size, progress=progress, seeing=seeing
        )
    left_out = set(unreadable)
    images = [row for position, row in enumerate(index.rows) if position not in left_out]
    cls_MD, patches_MD, _ = tokens.split(features[name])
    return cls_MD, patches_MD, images, [index.rows[position] for position in unreadable]


def images_below(name: str, paths: list[Path]) -> Sequence[ImageRef]:
    """The images below some paths, read as a model's run read its own.

    Raises: UserError if there are none.
    """
    return build_index(paths, verify="headers", reading=reading_of(name), take=["all"]).rows
