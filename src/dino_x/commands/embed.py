"""Features of the images below some paths, by one model."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from dino_x.data.image import ImageRef
from dino_x.data.index.index import build_index
from dino_x.evaluation.backbone import LoadedModel
from dino_x.evaluation.embed import ImagePreparation, backbone_encoder, encode
from dino_x.model.families import registers_of
from dino_x.progress import progress_bar
from dino_x.runs.folder import reading_of


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
    preparation = model.preparation
    parameter = next(model.model.parameters())
    first_patch = 1 + registers_of(model.config)

    def cls_and_patches(output: Any) -> torch.Tensor:
        patches_BNF = output.last_hidden_state[:, first_patch:]
        return torch.cat([output.pooler_output, patches_BNF.mean(dim=1)], dim=1)

    encoder = backbone_encoder(
        model.model,
        image_size=preparation.image_size,
        mean=preparation.mean,
        std=preparation.std,
        device=parameter.device,
        precision="fp32",
        slices=preparation.slices,
        read_out=cls_and_patches,
    )
    seeing = ImagePreparation(preparation.windows, index.rows)
    with progress_bar(console, "embedding") as progress:
        features, unreadable = encode(
            {name: encoder}, index.rows, batch_size=batch_size, progress=progress, seeing=seeing
        )
    left_out = set(unreadable)
    images = [row for position, row in enumerate(index.rows) if position not in left_out]
    cls_MD, patches_MD = np.split(features[name], 2, axis=1)
    return cls_MD, patches_MD, images, [index.rows[position] for position in unreadable]


def images_below(name: str, paths: list[Path]) -> list[ImageRef]:
    """The images below some paths, read as a model's run read its own.

    Raises: UserError if there are none.
    """
    return build_index(paths, verify="headers", reading=reading_of(name), take=["all"]).rows
