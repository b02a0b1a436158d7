"""The backbone: transformers' DINOv3 ViT or DINOv2, with its random layers counted.

Parameters keep their names: what is trained here is loadable with ``AutoModel.from_pretrained``.
B: rows of a forward (crops), L: layers.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTRopePositionEmbedding,
    get_patches_center_coordinates,
)

from dino_x.config.model_sizes import SIZES, is_size
from dino_x.config.options import ModelOptions
from dino_x.errors import UserError, nearest
from dino_x.files import open_to_group, sync
from dino_x.losses.transfer import all_there
from dino_x.model.accounting import Accounting
from dino_x.model.blocks import Block, NeededTokens, Rope
from dino_x.model.families import final_norm, layers_of, registers_of, square
from dino_x.model.pretrained import PREPARATION, quiet_transformers
from dino_x.model.weights import load_start

REGISTERS = 4
LAYERSCALE = 1e-5  # DINOv3's
INIT_STD = 0.02  # DINOv3's
CHANNELS = 3  # every tool that loads the saved model expects 3; grey images are repeated
MEAN, STD = 0.5, 0.25  # of images windowed to [0, 1], for new models


@dataclass(frozen=True)
class ForwardRandomness:
    """The random numbers of one training forward.

    Attributes:
        keep: bool [L, 2, B], whether a row keeps each layer's attention and MLP branch. On the CPU:
            what is computed depends on it.
        rescale: what RoPE coordinates are multiplied by: a number a layer, [L], as in DINOv3's
            training, or one for all layers, as in transformers. They are the same for every
            micro-batch of a step.
    """

    keep: np.ndarray
    rescale: np.ndarray | float


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
        drop_path: stochastic depth, the same rate in every block.
        recompute: whether the backward pass computes a block's activations again (activation
            checkpointing): memory of one block instead of all, for a third more time.
        mean, std: of its images in [0, 1], a number a channel.
        accounting: what became of each tensor of the weights it was loaded from; None if new.
    """

    def __init__(self, vit: Any, drop_path: float) -> None:
        super().__init__()
        self.vit = vit
        self.drop_path = drop_path
        self.recompute = False
        layers = layers_of(vit)
        for index, layer in enumerate(layers):
            layers[index] = Block(layer)
        self.rope: CountedRope | None = None
        if hasattr(vit, "rope_embeddings"):  # DINOv2 has learned positions
            self.rope = CountedRope(vit.rope_embeddings, self.patch_size)
            vit.add_module("rope_embeddings", self.rope)
        self.mean, self.std = [MEAN] * self.channels, [STD] * self.channels
        self.accounting: Accounting | None = None

    @property
    def width(self) -> int:
        """The number of features of a token, D."""
        return self.vit.config.hidden_size

    @property
    def depth(self) -> int:
        """The number of layers, L."""
        return self.vit.config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return square(self.vit.config.patch_size)

    @property
    def channels(self) -> int:
        """The number of input channels."""
        return self.vit.config.num_channels

    def forward(
        self,
        crops_BCOO: Tensor,
        mask_BN: Tensor | None,
        randomness: ForwardRandomness | None,
        patches_W: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """CLS [B, D] and patch tokens [B, N, D] after the final norm.

        Args:
            crops_BCOO: images of side O.
            mask_BN: patches that are hidden from the network.
            randomness: the random numbers of the forward; None for a forward without any.
            patches_W: the patches that are looked at, as places in [B * N]; patch tokens are then
                [W, D], and the last block computes no others. None looks at all.
        """
        ropes = self.ropes(crops_BCOO, 1.0 if randomness is None else randomness.rescale)
        tokens = self.vit.embeddings(crops_BCOO, bool_masked_pos=mask_BN)
        rows, count = tokens.shape[:2]
        registers = registers_of(self.vit.config)
        keep_by_layer: Sequence[np.ndarray | None] = [None] * self.depth  # [2, B] each
        if randomness is not None and self.drop_path:
            keep_by_layer = list(randomness.keep)
        looked = None
        if patches_W is not None:
            places = places_of(patches_W, rows, count, registers)
            looked = NeededTokens.at(places, keep_by_layer[-1], count, tokens.device)
        kept = kept_rows(keep_by_layer, self.drop_path, tokens.device)
        for index, block in enumerate(layers_of(self.vit)):
            is_last = index == self.depth - 1
            run = partial(
                block,
                position_embeddings=ropes[index],
                looked=looked if is_last else None,
                **kept[index],
            )
            if self.recompute and torch.is_grad_enabled():  # nothing in a block is drawn
                tokens = checkpoint(run, tokens, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = run(tokens)
        tokens = final_norm(self.vit)(tokens)
        if looked is not None:
            return tokens[:rows], tokens[rows:]
        return tokens[:, 0], tokens[:, 1 + registers :]

    def ropes(self, crops_BCOO: Tensor, rescale: np.ndarray | float) -> list[Rope | None]:
        """The angles of each layer's RoPE; None for each if the model has learned positions."""
        if self.rope is None:
            return [None] * self.depth
        made: dict[float, Rope] = {}
        ropes: list[Rope | None] = []
        for factor in np.broadcast_to(rescale, self.depth).tolist():
            if factor not in made:
                self.rope.rescale = factor
                made[factor] = self.rope(crops_BCOO)
            ropes.append(made[factor])
        return ropes

    def compile_blocks(self, backend: Any = "inductor") -> None:
        """Have torch.compile make the branches of the blocks, for any number of rows.

        Args:
            backend: what torch.compile calls a backend: a name, or a function.
        """
        for block in layers_of(self.vit):
            block.backend = backend


def places_of(patches_W: np.ndarray, rows: int, tokens: int, registers: int) -> np.ndarray:
    """Places in [B * T] tokens of the CLS token of each row, then of the patches looked at."""
    first = 1 + registers
    row_W, patch_W = np.divmod(patches_W, tokens - first)
    return np.concatenate([np.arange(rows) * tokens, row_W * tokens + first + patch_W])


def kept_rows(
    keep_by_layer: Sequence[np.ndarray | None], rate: float, device: torch.device
) -> list[dict[str, Tensor | float | None]]:
    """For each block the rows that keep its branches, and what these are multiplied by.

    They are sent to the device as one message.

    Args:
        keep_by_layer: bool [2, B], whether a row keeps attention and MLP; None if all keep both.
        rate: of stochastic depth.
        device: where the rows are wanted.

    Source: Huang et al. 2016, with the factor in training, as in DINOv2/v3.
    """
    dropping = {
        (layer, branch): np.flatnonzero(keep_B)
        for layer, keep_2B in enumerate(keep_by_layer)
        if keep_2B is not None
        for branch, keep_B in zip(("attention_rows", "mlp_rows"), keep_2B, strict=True)
        if not keep_B.all()
    }
    there = dict(zip(dropping, all_there(list(dropping.values()), device), strict=True))
    return [
        {}
        if keep_2B is None
        else {
            "attention_rows": there.get((layer, "attention_rows")),
            "mlp_rows": there.get((layer, "mlp_rows")),
            "factor": 1 / (1 - rate),
        }
        for layer, keep_2B in enumerate(keep_by_layer)
    ]


def new_backbone(options: ModelOptions, image_size: int) -> Any:
    """A DINOv3 ViT with new weights, of the named size with what is set by itself."""
    if options.name not in SIZES:
        raise UserError(
            f"model '{options.name}' is neither a known size ({', '.join(SIZES)}) nor a folder"
            + nearest(options.name, SIZES)
        )
    width, depth, heads, patch = SIZES[options.name]
    width = options.width or width
    heads = heads_for(width, options.heads, heads)
    init_std = INIT_STD if options.init == "normal" else (2 * width) ** -0.5
    config = DINOv3ViTConfig(
        hidden_size=width,
        num_hidden_layers=options.depth or depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=options.patch_size or patch,
        num_register_tokens=REGISTERS if options.registers is None else options.registers,
        layerscale_value=options.layerscale or LAYERSCALE,
        initializer_range=init_std,
        image_size=image_size,
        num_channels=options.channels or CHANNELS,
    )
    return DINOv3ViTModel(config)


def heads_for(width: int, asked: int | None, usual: int) -> int:
    """The number of attention heads: as asked, else as usual for the size, else 64 wide.

    Raises: UserError if the width does not split into them.
    """
    heads = usual if width % usual == 0 else width // 64
    if asked:
        heads = asked
    if heads < 1 or width % heads or (width // heads) % 4:
        raise UserError(
            f"model.width {width} does not split into {heads} heads of a multiple of 4 features;"
            f" set model.heads"
        )
    return heads


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


def save_vit(vit_state: dict[str, Tensor], network: Any, folder: Path, size: int,
             mean: list[float], std: list[float],
             more: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """Write weights as transformers saves them, with the configuration of its image processor.

    Args:
        vit_state: state dict of the ViT to save (the teacher's).
        network: what it is a state of; takes these weights.
        folder: made if missing; files are replaced one by one, each whole, and the configuration of
            the processor last: what it says about the weights is true at every moment.
        size: side in pixels to which the processor resizes images.
        mean, std: of images in [0, 1].
        more: added to the configuration of the image processor.
    """
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    network.load_state_dict({k: v.detach().float().cpu() for k, v in vit_state.items()})
    write_vit(network, staging, size, mean, std, more)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == PREPARATION):
        sync(file)
        os.replace(file, folder / file.name)
    staging.rmdir()


def write_vit(vit: Any, folder: Path, size: int, mean: list[float], std: list[float],
              more: Mapping[str, Any] | None = None) -> None:  # fmt: skip
    """A network as transformers saves it, and the configuration of its image processor."""
    with quiet_transformers():
        vit.save_pretrained(folder)
    open_to_group(folder)
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
    (folder / PREPARATION).write_text(json.dumps(processor, indent=2) + "\n")
