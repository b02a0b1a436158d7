"""The architectures that can be trained on: transformers' DINOv3 ViT and its two DINOv2.

They differ in positions (RoPE, or a learned grid that is interpolated), in where their layers and
patch kernels are, and in nothing else that training has to know.
"""

from typing import Any

from torch import nn
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

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
POSITIONS = "embeddings.position_embeddings"  # of DINOv2: [1, 1 + grid * grid, D]


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
