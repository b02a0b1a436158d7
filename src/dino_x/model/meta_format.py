"""DINOv2 and DINOv3 backbones in the format of their first release: one ``.pth`` state dict.

What the tensors are called and shaped says which architecture they are of; a table gives each its
name in transformers. Queries, keys and values lie in one matrix there and in three here.
D features, R registers, H hidden, P side of a patch.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2WithRegistersConfig, DINOv3ViTConfig

from dino_x.errors import UserError
from dino_x.model.families import LAYERS, PATCH_KERNELS, POSITIONS
from dino_x.model.weight_files import read_file

PERIODS = "rope_embed.periods"
HEAD_WIDTH = 64  # of every released DINOv2, whose file does not say it

TOKENS = {  # outside the blocks, both versions
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",  # DINOv2's name for them
    "storage_tokens": "embeddings.register_tokens",  # DINOv3's
    "pos_embed": POSITIONS,
}
BLOCK = {  # of a block, both versions, where one tensor becomes one
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "attn.proj.weight": "attention.o_proj.weight",
    "attn.proj.bias": "attention.o_proj.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w1.weight": "mlp.gate_proj.weight",  # SwiGLU of DINOv3: gate, up, down
    "mlp.w1.bias": "mlp.gate_proj.bias",
    "mlp.w2.weight": "mlp.up_proj.weight",
    "mlp.w2.bias": "mlp.up_proj.bias",
    "mlp.w3.weight": "mlp.down_proj.weight",  # of DINOv2 too, which has gate and up in w12
    "mlp.w3.bias": "mlp.down_proj.bias",
}
MLP = {  # a plain MLP, whose layers the two have different names for in transformers
    "dinov3_vit": {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"},
    "dinov2": {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"},
}
FINAL_NORM = {"dinov3_vit": "norm", "dinov2": "layernorm"}
# Norms of the CLS token that some models have beside the one for all tokens.
LOCAL_NORM = "local_cls_norm."  # the 7B and the satellite model: of local crops, in training only
CLS_NORM = "cls_norm."  # of all crops
LEFT_OUT = "a norm for the CLS tokens of local crops alone; here they have that of all tokens"


@dataclass
class Converted:
    """A released state dict under transformers' names, and the configuration it is of.

    Attributes:
        reshaped: names of tensors that were cut or reshaped on the way, and how.
        unused: names in the file without a place, and why.
        assumed: what was taken for what the file does not say, in words.
    """

    config: Any
    state: dict[str, Tensor] = field(default_factory=dict)
    reshaped: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def check_norms(state: Mapping[str, Tensor], path: Path, allow_partial: bool) -> None:
    """Refuse a backbone whose CLS tokens have a norm of their own, which transformers' has not.

    Raises: UserError, unless ``allow_partial``: without it, CLS features would be wrong.
    """
    own = [name for name in state if name.startswith(CLS_NORM)]
    if own and not allow_partial:
        raise UserError(
            f"{path} has a norm of its own for CLS tokens ({own[0]}), which this architecture"
            " lacks, so its CLS features would be wrong; load a model without one, or train on from"
            " it with --allow-partial, which leaves that norm out"
        )


def convert(path: Path, heads: int | None, *, allow_partial: bool = False) -> Converted:
    """Convert a released backbone, tensor by tensor.

    Args:
        path: the ``.pth`` file.
        heads: attention heads, where the file does not say and they are not 64 wide.
        allow_partial: whether a norm that the architecture lacks may be left out.

    Raises: UserError for what is no such backbone.
    """
    state, taken = read_file(path)
    check_norms(state, path, allow_partial)
    config = configuration(state, path, heads)
    kind = config.model_type
    converted = Converted(config, assumed=taken)
    key_bias = kind != "dinov3_vit" or config.key_bias
    blocks: dict[str, dict[str, Tensor]] = {}  # by number and name
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(?:\d+\.)?(\d+)\.(.+)", name)
        if block:  # blocks may lie in chunks, "blocks.0.11."; the second number counts through
            number, inner_name = block.groups()
            blocks.setdefault(number, {})[inner_name] = tensor.float()
        else:
            _convert_outside(name, tensor.float(), kind, converted)
    for number, inside in blocks.items():
        _convert_block(number, inside, kind, key_bias, converted)
    if not any(name.endswith(".ls1.gamma") for name in state):  # DINO's ViT scales no layer
        _scale_by_one(blocks, config, converted)
    return converted


def _scale_by_one(blocks: Iterable[str], config: Any, converted: Converted) -> None:
    """A LayerScale of 1 for every block, which leaves a network without one as it is."""
    converted.assumed.append("LayerScale 1, as the file has none")
    for number in blocks:
        for name in ("ls1.gamma", "ls2.gamma"):
            target = f"{LAYERS[config.model_type]}.{number}.{BLOCK[name]}"
            converted.state[target] = torch.ones(config.hidden_size)


def _convert_outside(name: str, tensor: Tensor, kind: str, converted: Converted) -> None:
    """Convert a tensor outside the blocks: tokens, positions, patch embedding, final norm."""
    version = "dinov3_vit" if kind == "dinov3_vit" else "dinov2"
    final = re.fullmatch(r"norm\.(weight|bias)", name)
    patch = re.fullmatch(r"patch_embed\.proj\.(weight|bias)", name)
    if name in TOKENS:
        target = TOKENS[name]
        if name == "mask_token" and version == "dinov3_vit" and tensor.ndim == 2:
            tensor = tensor[:, None]
            converted.reshaped[target] = "[1, D] to [1, 1, D]"
        converted.state[target] = tensor
    elif final:
        converted.state[f"{FINAL_NORM[version]}.{final.group(1)}"] = tensor
    elif patch:
        converted.state[f"{PATCH_KERNELS[kind]}.{patch.group(1)}"] = tensor
    elif name == PERIODS:
        converted.unused[name] = "computed from rope_theta"
    elif name.startswith(LOCAL_NORM):
        converted.unused[name] = LEFT_OUT
    else:
        converted.unused[name] = ""


def _convert_block(
    number: str, block: dict[str, Tensor], kind: str, key_bias: bool, converted: Converted
) -> None:
    """Convert a block: most tensors by name; queries, keys and values are cut from one matrix."""
    prefix = f"{LAYERS[kind]}.{number}."
    mlp = MLP["dinov3_vit" if kind == "dinov3_vit" else "dinov2"]
    for name, tensor in block.items():
        layer, _, leaf = name.rpartition(".")
        if name in BLOCK:
            converted.state[prefix + BLOCK[name]] = tensor
        elif layer in mlp:
            converted.state[f"{prefix}{mlp[layer]}.{leaf}"] = tensor
        elif layer == "mlp.w12":
            _cut(prefix, ("mlp.gate_proj", "mlp.up_proj"), leaf, tensor, converted)
        elif name == "attn.qkv.weight":
            _cut(prefix, QKV, leaf, tensor, converted)
        elif name == "attn.qkv.bias":
            _cut(prefix, QKV, leaf, masked(tensor, block.get(BIAS_MASK)), converted)
            if not key_bias:
                del converted.state[f"{prefix}{QKV[1]}.bias"]
                del converted.reshaped[f"{prefix}{QKV[1]}.bias"]
        elif name == BIAS_MASK:
            converted.unused[f"blocks.{number}.{name}"] = "0 for keys: they have no bias"
        else:
            converted.unused[f"blocks.{number}.{name}"] = ""


QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
BIAS_MASK = "attn.qkv.bias_mask"


def _cut(
    prefix: str, layers: tuple[str, ...], leaf: str, tensor: Tensor, converted: Converted
) -> None:
    """Cut a tensor along its rows into equal parts, one for each of several layers."""
    for position, part in enumerate(tensor.tensor_split(len(layers))):
        name = f"{prefix}{layers[position]}.{leaf}"
        converted.state[name] = part.clone()
        converted.reshaped[name] = f"rows {position + 1} of {len(layers)} of one matrix"


def masked(bias: Tensor, mask: Tensor | None) -> Tensor:
    """A bias where its mask is not 0; what lies under the mask may be anything, NaN too."""
    if mask is None:
        return bias
    return torch.where(mask.float() == 0, 0.0, bias)


def has_bias(state: Mapping[str, Tensor], layer: str) -> bool:
    """Whether any block has a bias of a layer, such as ``attn.qkv``."""
    return any(name.endswith(f".{layer}.bias") for name in state)


def key_biases(state: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The part of each block's bias that is for keys, [D]."""
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            yield masked(tensor.float(), state.get(name + "_mask")).tensor_split(3)[1]


def configuration(state: Mapping[str, Tensor], path: Path, heads: int | None) -> Any:
    """transformers' configuration of a released state dict, from its names and shapes.

    Raises: UserError for shapes that no such ViT has.
    """
    kernels = state["patch_embed.proj.weight"]
    width, channels = kernels.shape[:2]
    depth = depth_of(state)
    if not depth:
        raise UserError(f"{path} has no blocks: is it a backbone?")
    common: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads_of(state, path, heads),
        "patch_size": kernels.shape[-1],
        "num_channels": channels,
    }
    if "pos_embed" in state:
        return _configuration_of_dinov2(state, path, common)
    return _configuration_of_dinov3(state, path, common)


def _configuration_of_dinov2(
    state: Mapping[str, Tensor], path: Path, common: Mapping[str, Any]
) -> Any:
    """The configuration of a DINOv2, whose learned positions lie on a square grid."""
    width, patch = common["hidden_size"], common["patch_size"]
    side = (state["pos_embed"].shape[1] - 1) ** 0.5
    if side != int(side):
        raise UserError(f"{path}: its grid of positions is not square")
    gated = is_gated(state)
    own: dict[str, Any] = {"image_size": int(side) * patch, "use_swiglu_ffn": gated}
    if not gated:
        own["mlp_ratio"] = hidden(state, "mlp.fc1.weight", 4 * width) // width
    registers = registers_in(state)
    if registers:
        return Dinov2WithRegistersConfig(**common, **own, num_register_tokens=registers)
    return Dinov2Config(**common, **own)


def _configuration_of_dinov3(
    state: Mapping[str, Tensor], path: Path, common: Mapping[str, Any]
) -> Any:
    """The configuration of a DINOv3, whose positions are RoPE's."""
    width, heads = common["hidden_size"], common["num_attention_heads"]
    gated = is_gated(state)
    layer, activation = "mlp.fc1.weight", "gelu"
    if gated:  # SwiGLU
        layer, activation = "mlp.w1.weight", "silu"
    return DINOv3ViTConfig(
        **common,
        num_register_tokens=registers_in(state),
        intermediate_size=hidden(state, layer, 4 * width),
        use_gated_mlp=gated,
        hidden_act=activation,
        query_bias=has_bias(state, "attn.qkv"),  # the 7B has none, the others have
        key_bias=any(bool(bias.any()) for bias in key_biases(state)),
        value_bias=has_bias(state, "attn.qkv"),
        proj_bias=has_bias(state, "attn.proj"),
        mlp_bias=has_bias(state, layer.removesuffix(".weight")),
        rope_theta=rope_theta(state.get(PERIODS), width // heads, path),
    )


def depth_of(state: Mapping[str, Tensor]) -> int:
    """The number of blocks."""
    matches = [re.match(r"blocks\.(?:\d+\.)?(\d+)\.", name) for name in state]
    numbers = [int(match.group(1)) for match in matches if match]
    return 1 + max(numbers, default=-1)


def heads_of(state: Mapping[str, Tensor], path: Path, heads: int | None) -> int:
    """The number of attention heads: as given, else from RoPE's periods, else 64 wide.

    Raises: UserError if the width does not split into them.
    """
    width = state["patch_embed.proj.weight"].shape[0]
    periods = state.get(PERIODS)
    head_width = HEAD_WIDTH if periods is None else 4 * len(periods)
    if not heads and width % head_width == 0:
        heads = width // head_width
    if not heads or width % heads:
        raise UserError(f"{path} does not say how many attention heads it has; set model.heads")
    return heads


def is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLP multiplies two branches (SwiGLU)."""
    return any(".mlp.w3." in name for name in state)


def registers_in(state: Mapping[str, Tensor]) -> int:
    """The number of register tokens."""
    tokens = state.get("storage_tokens", state.get("register_tokens"))
    if tokens is None:
        return 0
    return tokens.shape[1]


def hidden(state: Mapping[str, Tensor], layer: str, otherwise: int) -> int:
    """Rows of a layer of the MLP, in the first block that has it."""
    for name, value in state.items():
        if name.endswith("." + layer):
            return len(value)
    return otherwise


def rope_theta(periods: Tensor | None, head_width: int, path: Path) -> float:
    """The base of RoPE's geometric row of periods: ``theta ** (4 * i / head width)``.

    Raises: UserError for periods that are no such row (to 2%: they are stored in bfloat16).
    """
    theta = 100.0
    if periods is None:
        return theta
    given = periods.double().flatten()
    exponents = torch.arange(len(given), dtype=torch.float64) * 4 / head_width
    if len(given) > 1 and not torch.allclose(theta**exponents, given, rtol=0.02):
        theta = float(given[-1] ** (1 / exponents[-1]))
        if not torch.allclose(theta**exponents, given, rtol=0.02):
            raise UserError(f"{path}: its RoPE periods are not a geometric row; it is no DINOv3")
    return theta
