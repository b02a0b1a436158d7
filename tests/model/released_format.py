"""The inverse of model/meta_format.py: a transformers network as a released ``.pth`` state dict."""

import math
import re

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from dino_x.errors import UserError
from dino_x.model.families import check_transformers

SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
KINDS = {  # name: (class, configuration)
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig,
               {"intermediate_size": 96, "num_register_tokens": 3}),
    "dinov3 gated": (DINOv3ViTModel, DINOv3ViTConfig,
                     {"intermediate_size": 80, "use_gated_mlp": True, "num_register_tokens": 4,
                      "hidden_act": "silu"}),
    "dinov3 7B": (DINOv3ViTModel, DINOv3ViTConfig,
                  {"intermediate_size": 80, "use_gated_mlp": True, "num_register_tokens": 4,
                   "hidden_act": "silu", "query_bias": False, "key_bias": False,
                   "value_bias": False}),
    "dinov2": (Dinov2Model, Dinov2Config, {"image_size": 32}),
    "dinov2 gated": (Dinov2Model, Dinov2Config, {"image_size": 32, "use_swiglu_ffn": True}),
    "dinov2 registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig,
                         {"image_size": 32, "num_register_tokens": 4}),
}  # fmt: skip


def skip_old_dinov2():
    """Skip a test of DINOv2 with a transformers whose DINOv2 has layers of other names."""
    try:
        check_transformers("dinov2")
    except UserError as error:
        pytest.skip(str(error))


def network(kind, **more):
    """A network of that kind in which no tensor is all zeros or all ones."""
    cls, config, values = KINDS[kind]
    if cls is not DINOv3ViTModel:
        skip_old_dinov2()
    torch.manual_seed(3)
    vit = cls(config(**SHAPE | values | more)).eval()
    with torch.no_grad():
        for weight in vit.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return vit


def released(vit, chunks=False):
    """The state dict as it would have been released; ``chunks`` puts blocks into two of them."""
    state = vit.state_dict()
    config = vit.config
    version3 = config.model_type == "dinov3_vit"
    layers = "model.layer" if version3 else "encoder.layer"
    kernels = "embeddings.patch_embeddings" + ("" if version3 else ".projection")
    out = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"].reshape(1, -1),
        "patch_embed.proj.weight": state[f"{kernels}.weight"],
        "patch_embed.proj.bias": state[f"{kernels}.bias"],
        "norm.weight": state["norm.weight" if version3 else "layernorm.weight"],
        "norm.bias": state["norm.bias" if version3 else "layernorm.bias"],
    }
    if version3:
        width = config.hidden_size // config.num_attention_heads
        out["storage_tokens"] = state["embeddings.register_tokens"]
        powers = torch.arange(width // 4) * 4 / width
        out["rope_embed.periods"] = (config.rope_theta**powers).bfloat16()
    else:
        out["pos_embed"] = state["embeddings.position_embeddings"]
        if "embeddings.register_tokens" in state:
            out["register_tokens"] = state["embeddings.register_tokens"]
    for number in range(config.num_hidden_layers):
        old, new = f"{layers}.{number}.", f"blocks.{number}."
        if chunks:
            new = f"blocks.{number * 2 // config.num_hidden_layers}.{number}."
        block = {n.removeprefix(old): v for n, v in state.items() if n.startswith(old)}
        out |= {new + name: value for name, value in released_block(block, version3).items()}
    return out


def released_block(block, version3):
    out = {}
    for name in ("norm1", "norm2"):
        out |= {f"{name}.{leaf}": block[f"{name}.{leaf}"] for leaf in ("weight", "bias")}
    for leaf in ("weight", "bias"):
        out[f"attn.proj.{leaf}"] = block[f"attention.o_proj.{leaf}"]
    out |= released_qkv(block)
    for number in "12":
        out[f"ls{number}.gamma"] = block[f"layer_scale{number}.lambda1"]
    mlp = {n.removeprefix("mlp."): v for n, v in block.items() if n.startswith("mlp.")}
    for name, value in mlp.items():
        layer, leaf = name.split(".")
        if "gate_proj.weight" not in mlp:
            layer = {"up_proj": "fc1", "down_proj": "fc2"}.get(layer, layer)
            out[f"mlp.{layer}.{leaf}"] = value
        elif version3:
            layer = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}[layer]
            out[f"mlp.{layer}.{leaf}"] = value
        elif layer == "down_proj":
            out[f"mlp.w3.{leaf}"] = value
        elif layer == "gate_proj":
            out[f"mlp.w12.{leaf}"] = torch.cat([value, mlp[f"up_proj.{leaf}"]])
    return out


def released_qkv(block):
    """Queries, keys and values in one matrix; the 7B has no biases of any."""
    out = {}
    for leaf in ("weight", "bias"):
        qkv = [block.get(f"attention.{part}_proj.{leaf}") for part in "qkv"]
        if qkv[0] is None:
            continue
        if qkv[1] is None:  # keys without a bias: NaN under a mask, as training leaves them
            qkv[1] = torch.full_like(qkv[0], math.nan)
            out["attn.qkv.bias_mask"] = torch.ones(3 * len(qkv[0]))
            out["attn.qkv.bias_mask"].view(3, -1)[1] = 0
        out[f"attn.qkv.{leaf}"] = torch.cat(qkv)
    return out


def without(state, pattern):
    """A state dict without the first tensor whose name matches, and that name."""
    name = next(name for name in state if re.search(pattern, name))
    return {n: v for n, v in state.items() if n != name}, name
