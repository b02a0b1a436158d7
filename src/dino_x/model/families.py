"""The architectures that can be trained on: transformers' DINOv3 ViT and its two DINOv2.

They differ in positions (RoPE, or a learned grid that is interpolated), in where their layers and
patch kernels are, and in nothing else that training has to know.
"""

from typing import Any

import transformers
from torch import nn
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

from dino_x.errors import UserError

CLASSES: dict[str, Any] = {
    "dinov3_vit": DINOv3ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
}
LAYERS = {  # where the blocks are
    "dinov3_vit": "model.layer",
    "dinov2": "encoder.layer",
    "dinov2_with_registers": "encoder.layer",
}
PATCH_KERNELS = {  # the convolution that makes patch tokens
    "dinov3_vit": "embeddings.patch_embeddings",
    "dinov2": "embeddings.patch_embeddings.projection",
    "dinov2_with_registers": "embeddings.patch_embeddings.projection",
}
DINOV2_SINCE = (5, 20)  # the transformers whose DINOv2 has layers of the names that blocks use
POSITIONS = "embeddings.position_embeddings"  # of DINOv2: [1, 1 + grid * grid, D]


def check_transformers(architecture: str) -> None:
    """Refuse a transformers whose network of this architecture has layers of other names.

    Raises: UserError.
    """
    version = transformers.__version__
    found = tuple(int(part) for part in version.split(".")[:2])
    if architecture != "dinov3_vit" and found < DINOV2_SINCE:
        needed = ".".join(map(str, DINOV2_SINCE))
        raise UserError(
            f"training from DINOv2 weights needs transformers {needed} or later; this is {version}"
        )


def layers_of(vit: nn.Module) -> nn.ModuleList:
    """The blocks of a network of any of these architectures, first to last."""
    layers = vit.get_submodule(LAYERS[vit.config.model_type])  # type: ignore[union-attr,index]
    assert isinstance(layers, nn.ModuleList)
    return layers


def final_norm(vit: Any) -> nn.Module:
    """The norm after the last block."""
    if hasattr(vit, "layernorm"):
        return vit.layernorm
    return vit.norm


def registers_of(config: Any) -> int:
    """The number of register tokens between CLS and patches; DINOv2 without registers has none."""
    return getattr(config, "num_register_tokens", 0)


def square(sides: Any) -> int:
    """One side from 14 or (14, 14), as configurations give patch and image sizes."""
    return int(sides[0]) if isinstance(sides, list | tuple) else int(sides)
