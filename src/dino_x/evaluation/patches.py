"""Features of the patches of an image, and the classes that a mask gives to them.

Every model sees images of 28 x 28 patches, whatever the size of its patches, so that all have the
same resolution.

B images, C channels, S x S pixels, P patches, D features, K classes with the background (class 0),
H x W pixels of a mask.
"""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from torch import nn
from torch.nn import functional

from dino_x.errors import UserError
from dino_x.evaluation.embed import Encoder, backbone_encoder
from dino_x.model.pretrained import Preparation, first_line

GRID = 28  # patches a side: 448 px for patches of 16 px, 392 for 14, 224 for 8
PIXEL_PATCH = 8
POSITION_WAVES = 8  # half waves across the image, each way


def patch_encoder(
    name: str,
    network: nn.Module,
    preparation: Preparation,
    *,
    device: torch.device | str,
    precision: str,
) -> Encoder:
    """A backbone's patch tokens after the final norm, [B, P, D], of images of 28 x 28 patches.

    Raises:
        UserError: for a network without patch tokens, or that takes no images of that size.
    """
    patch: Any = getattr(network.config, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) else patch
    if not isinstance(patch, int):
        raise UserError(f"{name} has no patches, so it cannot be probed for segmentation")
    options = {}
    if "interpolate_pos_encoding" in inspect.signature(network.forward).parameters:
        options["interpolate_pos_encoding"] = True
    encoder = backbone_encoder(
        network,
        image_size=GRID * patch,
        mean=preparation.mean,
        std=preparation.std,
        device=device,
        precision=precision,
        slices=preparation.slices,
        grey=preparation.grey,
        read_out=lambda output: output.last_hidden_state[:, -GRID * GRID :],
        **options,
    )
    size = encoder.image_size
    try:
        with torch.no_grad():
            tokens = encoder.features(torch.zeros(1, preparation.channels, size, size))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} takes no images of {size} x {size} px, so it cannot be probed for"
            f" segmentation: {first_line(error)}"
        ) from error
    if tokens.ndim != 3 or tokens.shape[1] != GRID * GRID:
        raise UserError(f"{name} gives no token for each patch: leave out segmentation (--tasks)")
    return encoder


def pixel_patch_encoder() -> Encoder:
    """A baseline encoder from grey values and places: [B, 1, 224, 224] to [B, P, 64 + 63].

    The place of a patch is given as products of cosines, from which a linear classifier can draw
    the mean mask of the training images, smoothed to an eighth of the image. Where organs lie in
    much the same place, that alone scores high, and a model must do better.
    """
    middles = (torch.arange(GRID) + 0.5) / GRID
    waves = torch.cos(torch.pi * torch.arange(POSITION_WAVES)[:, None] * middles)  # [waves, 28]
    place = torch.einsum("ay,bx->yxab", waves, waves).reshape(GRID * GRID, -1)[:, 1:]

    def features(images_BCSS: torch.Tensor) -> torch.Tensor:
        pixels = functional.unfold(images_BCSS, PIXEL_PATCH, stride=PIXEL_PATCH).transpose(1, 2)
        return torch.cat([pixels, place.expand(len(pixels), -1, -1)], dim=2)

    return Encoder(GRID * PIXEL_PATCH, 1, features)


def class_shares(mask_HW: np.ndarray, class_count: int) -> np.ndarray:
    """The share of each patch's area that each class has, float32 [P, K]; rows sum to 1.

    Args:
        mask_HW: classes 0 .. K - 1.
        class_count: K.
    """
    shares = []
    for k in range(class_count):
        plane = Pillow.fromarray((mask_HW == k).astype(np.float32))
        share = plane.resize((GRID, GRID), Pillow.Resampling.BOX)
        shares.append(np.asarray(share).ravel())
    return np.stack(shares, axis=1)
