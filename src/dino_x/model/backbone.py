"""The backbone: transformers' DINOv3 ViT or DINOv2, with its random layers counted.

Parameters keep their names: what is trained here is loadable with ``AutoModel.from_pretrained``.
B: rows of a forward (crops), L: layers.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTRopePositionEmbedding,
    get_patches_center_coordinates,
)

from dino_x.config import ModelOptions
from dino_x.errors import UserError, nearest
from dino_x.model.accounting import Accounting
from dino_x.model.families import layers_of, registers_of, square
from dino_x.model.pretrained import quiet_transformers
from dino_x.model.weights import load_start

SIZES = {  # width, depth, heads, patch size
    "vit-tiny": (192, 12, 3, 16),
    "vits16": (384, 12, 6, 16),
    "vitb16": (768, 12, 12, 16),
    "vitl16": (1024, 24, 16, 16),
}
REGISTERS = 4
LAYERSCALE = 1e-5  # DINOv3's
INIT_STD = 0.02  # DINOv3's
CHANNELS = 3  # every tool that loads the saved model expects 3; grey images are repeated
MEAN, STD = 0.5, 0.25  # of images windowed to [0, 1], for new models


@dataclass(frozen=True)
class ForwardRandomness:
    """The random numbers of one training forward.

    Attributes:
        keep: bool [L, 2, B], whether a row keeps each layer's attention and MLP branch.
        rescale: what RoPE coordinates are multiplied by; one number, as in the reference, but the
            same for every micro-batch of a step.
    """

    keep: Tensor
    rescale: float


class StochasticDepth(nn.Module):
    """Stochastic depth whose draws are given, not made (Huang et al. 2016).

    A layer calls it twice a forward, for its attention branch and then for its MLP branch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None  # [2, B]
        self.calls = 0

    def forward(self, branch: Tensor) -> Tensor:
        """Rows that are not kept become 0, the others 1 / (1 - rate) times themselves."""
        if self.keep is None or self.rate == 0:
            return branch
        keep = self.keep[self.calls % 2].to(branch.dtype) / (1 - self.rate)
        self.calls += 1
        return branch * keep[:, None, None]


class CountedRope(nn.Module):
    """transformers' RoPE with the training rescale given, not drawn."""

    inv_freq: Tensor

    def __init__(self, rope: DINOv3ViTRopePositionEmbedding, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.register_buffer("inv_freq", rope.inv_freq, persistent=False)
        self.rescale = 1.0

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each patch's angles, [N, head width] each."""
        grid = (side // self.patch_size for side in pixel_values.shape[-2:])
        coordinates = get_patches_center_coordinates(
            *grid, dtype=torch.float32, device=pixel_values.device
        )
        angles = 2 * torch.pi * self.rescale * coordinates[:, :, None] * self.inv_freq
        angles = angles.flatten(1, 2).tile(2)
        return angles.cos().to(pixel_values.dtype), angles.sin().to(pixel_values.dtype)


class Backbone(nn.Module):
    """A ViT whose forward takes its randomness as an argument.

    Attributes:
        vit: transformers' network, of an architecture in families.py.
        mean, std: of its images in [0, 1], a number a channel.
        accounting: what became of each tensor of the weights it was loaded from; None if new.
    """

    def __init__(self, vit: Any, drop_path: float) -> None:
        super().__init__()
        self.vit = vit
        layers = layers_of(vit)
        self.depth_layers = [StochasticDepth(drop_path) for _ in layers]
        for layer, depth in zip(layers, self.depth_layers, strict=True):
            layer.drop_path = depth
        self.rope: CountedRope | None = None
        if hasattr(vit, "rope_embeddings"):  # DINOv2 has learned positions
            self.rope = CountedRope(vit.rope_embeddings, self.patch_size)
            vit.add_module("rope_embeddings", self.rope)
        self.mean, self.std = [MEAN] * self.channels, [STD] * self.channels
        self.accounting: Accounting | None = None

    @property
    def width(self) -> int:
        """Features of a token, D."""
        return self.vit.config.hidden_size

    @property
    def depth(self) -> int:
        """Layers, L."""
        return self.vit.config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return square(self.vit.config.patch_size)

    @property
    def channels(self) -> int:
        """Input channels, 1 or 3."""
        return self.vit.config.num_channels

    def forward(
        self, crops_BCOO: Tensor, mask_BN: Tensor | None, randomness: ForwardRandomness | None
    ) -> tuple[Tensor, Tensor]:
        """CLS [B, D] and patch tokens [B, N, D] after the final norm; no randomness if None."""
        for index, depth in enumerate(self.depth_layers):
            depth.keep = None if randomness is None else randomness.keep[index]
            depth.calls = 0
        if self.rope is not None:
            self.rope.rescale = 1.0 if randomness is None else randomness.rescale
        tokens = self.vit(crops_BCOO, bool_masked_pos=mask_BN).last_hidden_state
        return tokens[:, 0], tokens[:, 1 + registers_of(self.vit.config) :]


def new_backbone(options: ModelOptions, image_size: int) -> Any:
    """A DINOv3 ViT with new weights, of the named size with what is set by itself."""
    if options.name not in SIZES:
        raise UserError(
            f"model '{options.name}' is neither a known size ({', '.join(SIZES)}) nor a folder"
            + nearest(options.name, SIZES)
        )
    width, depth, heads, patch = SIZES[options.name]
    width = options.width or width
    heads = options.heads or (heads if width % heads == 0 else width // 64)
    if heads < 1 or width % heads or (width // heads) % 4:
        raise UserError(
            f"model.width {width} does not split into {heads} heads of a multiple of 4 features;"
            f" set model.heads"
        )
    config = DINOv3ViTConfig(
        hidden_size=width,
        num_hidden_layers=options.depth or depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=options.patch_size or patch,
        num_register_tokens=REGISTERS if options.registers is None else options.registers,
        layerscale_value=options.layerscale or LAYERSCALE,
        initializer_range=INIT_STD if options.init == "normal" else (2 * width) ** -0.5,
        image_size=image_size,
        num_channels=options.channels or CHANNELS,
    )
    return DINOv3ViTModel(config)


def is_size(name: str) -> bool:
    """Whether a model name is one of the built-in sizes."""
    return name in SIZES


def build_backbone(options: ModelOptions, image_size: int, seed: int) -> Backbone:
    """The student's backbone, new or loaded; new weights come from the seed alone.

    Raises: UserError for a model that cannot be loaded, see weights.py.
    """
    if is_size(options.name):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Backbone(new_backbone(options, image_size), options.drop_path)
    try:
        start = load_start(options, seed)
    except UserError as error:
        if "/" in options.name or "cannot be changed" in str(error):
            raise
        raise UserError(
            f"model '{options.name}' is no known size ({', '.join(SIZES)})"
            f"{nearest(options.name, SIZES)}; {error}"
        ) from error
    backbone = Backbone(start.vit, options.drop_path)
    backbone.mean, backbone.std = list(start.preparation.mean), list(start.preparation.std)
    backbone.accounting = start.accounting
    return backbone


def save_vit(vit_state: dict[str, Tensor], backbone: Backbone, folder: Path, size: int,
             mean: list[float], std: list[float],
             more: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Write weights as transformers saves them, with the configuration of its image processor.

    Args:
        vit_state: state dict of the ViT to save (the teacher's).
        backbone: what it is a state of.
        folder: made if missing; files are replaced one by one, each whole.
        size: side in pixels to which the processor resizes images.
        mean, std: of images in [0, 1].
        more: added to the configuration of the image processor.
    """
    staging = folder.with_name(folder.name + ".partial")
    fresh = type(backbone.vit)(backbone.vit.config)
    fresh.load_state_dict({k: v.detach().float().cpu() for k, v in vit_state.items()})
    write_vit(fresh, staging, size, mean, std, more)
    folder.mkdir(parents=True, exist_ok=True)
    for file in staging.iterdir():
        os.replace(file, folder / file.name)
    staging.rmdir()


def write_vit(vit: Any, folder: Path, size: int, mean: list[float], std: list[float],
              more: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """A network as transformers saves it, and the configuration of its image processor."""
    with quiet_transformers():
        vit.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": len(mean) == 3,
        **(more or {}),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
