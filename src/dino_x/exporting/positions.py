"""Learned positions of a network at the size that its images have.

DINOv2 keeps a grid of positions for images of its own size, and resamples it for others, in each
forward. What it goes on with at another size then exists in that forward alone, and other tools
resample in other ways. So an export holds the grid for the size that images are prepared to.
"""

import copy
from typing import Any

import torch
from torch import nn

from dino_x.model.families import POSITIONS, square


def at_size(vit: Any, size: int) -> Any:
    """The network as it is for images of a side, with no position to be resampled.

    Args:
        vit: a network of transformers; it stays as it is.
        size: side of its images in pixels.

    Returns: a copy with another grid of positions and another ``image_size``; the network itself
        if it has no learned positions, or has them for this size, or takes no whole number of
        patches of it.
    """
    patch = square(vit.config.patch_size)
    if POSITIONS not in vit.state_dict() or square(vit.config.image_size) == size or size % patch:
        return vit
    resized = copy.deepcopy(vit)
    embeddings, side = resized.embeddings, size // patch
    tokens = embeddings.position_embeddings.new_zeros(1, 1 + side * side, vit.config.hidden_size)
    with torch.no_grad():
        positions_1ND = embeddings.interpolate_pos_encoding(tokens, size, size)
    embeddings.position_embeddings = nn.Parameter(positions_1ND)
    resized.config.image_size = size
    embeddings.patch_embeddings.image_size = (size, size)
    return resized
