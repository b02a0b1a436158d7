"""A backbone under timm's names: its ``Eva`` for DINOv3, its ``VisionTransformer`` for DINOv2.

timm keeps queries, keys and values in one matrix, and knows a folder with ``config.json`` and
``model.safetensors`` as ``timm.create_model("local-dir:FOLDER", pretrained=True)``.
D features, H hidden, N patches.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dino_x.errors import UserError
from dino_x.model.families import LAYERS, PATCH_KERNELS, POSITIONS, registers_of, square
from dino_x.model.pretrained import Preparation

BLOCK = {  # the same in both of timm's classes
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
}
ARCHITECTURE = {
    "dinov3_vit": "vit_small_patch16_dinov3_qkvb",
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2_with_registers": "vit_small_patch14_reg4_dinov2",
}


def timm_config(config: Any, preparation: Preparation) -> dict[str, Any]:
    """timm's ``config.json``: an architecture it knows, and the sizes in which this one differs.

    Raises: UserError for a network that timm has no class for.
    """
    kind, width = config.model_type, config.hidden_size
    version3 = kind == "dinov3_vit"
    if version3 and config.key_bias:
        raise UserError("timm's DINOv3 has no bias for keys, this model has; export transformers")
    if version3 and config.hidden_act != ("silu" if config.use_gated_mlp else "gelu"):
        raise UserError(f"timm's DINOv3 has no '{config.hidden_act}' there; export transformers")
    size = preparation.image_size if version3 else square(config.image_size)
    arguments: dict[str, Any] = {
        "img_size": size,
        "patch_size": square(config.patch_size),
        "in_chans": config.num_channels,
        "global_pool": "token",
        "embed_dim": width,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "dynamic_img_size": True,
        "num_reg_tokens" if version3 else "reg_tokens": registers_of(config),
    }
    if version3:
        # A hair more, so that timm's int(width * ratio) is the whole number it stands for.
        arguments["mlp_ratio"] = (config.intermediate_size + 1e-3) / width
        arguments["rope_temperature"] = config.rope_theta
        arguments["swiglu_mlp"] = config.use_gated_mlp
        arguments["swiglu_align_to"] = 1 if config.use_gated_mlp else 0
    elif config.use_swiglu_ffn:
        raise UserError("timm takes SwiGLU of DINOv2 in code only; export transformers or onnx")
    else:
        arguments["mlp_ratio"] = config.mlp_ratio
    return {
        "architecture": ARCHITECTURE[kind],
        "num_classes": 0,
        "num_features": width,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.num_channels, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def timm_state(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """A transformers state dict under timm's names; the mask token, for training, is left out."""
    kind = config.model_type
    version3 = kind == "dinov3_vit"
    final = "norm" if version3 else "layernorm"
    out = {
        "cls_token": state["embeddings.cls_token"],
        "patch_embed.proj.weight": state[f"{PATCH_KERNELS[kind]}.weight"],
        "patch_embed.proj.bias": state[f"{PATCH_KERNELS[kind]}.bias"],
        "norm.weight": state[f"{final}.weight"],
        "norm.bias": state[f"{final}.bias"],
    }
    if registers_of(config):
        out["reg_token"] = state["embeddings.register_tokens"]
    if not version3:
        positions_1ND = state[POSITIONS]
        out["pos_embed"] = positions_1ND
        if registers_of(config):  # there timm's positions are for patches alone
            out["cls_token"] = out["cls_token"] + positions_1ND[:, :1]
            out["pos_embed"] = positions_1ND[:, 1:]
    for number in range(config.num_hidden_layers):
        prefix = f"{LAYERS[kind]}.{number}."
        block = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        for name, tensor in _timm_block(block, version3).items():
            out[f"blocks.{number}.{name}"] = tensor
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in out.items()}


def _timm_block(block: Mapping[str, Tensor], version3: bool) -> dict[str, Tensor]:
    """One block under timm's names, with queries, keys and values joined."""
    up = "mlp.fc1_x" if "mlp.gate_proj.weight" in block else "mlp.fc1"
    names = BLOCK | {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": up}
    out = {}
    for name, tensor in block.items():
        layer, _, leaf = name.rpartition(".")
        if layer in names:
            out[f"{names[layer]}.{leaf}"] = tensor
    scale = "gamma_{}" if version3 else "ls{}.gamma"
    for number in "12":
        out[scale.format(number)] = block[f"layer_scale{number}.lambda1"]
    joined = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
    out["attn.qkv.weight"] = torch.cat([block[f"{name}.weight"] for name in joined])
    if version3:
        out["attn.q_bias"] = block["attention.q_proj.bias"]
        out["attn.v_bias"] = block["attention.v_proj.bias"]
    else:
        out["attn.qkv.bias"] = torch.cat([block[f"{name}.bias"] for name in joined])
    return out


def write_timm(vit: Any, preparation: Preparation, folder: Path) -> None:
    """``config.json`` and ``model.safetensors`` as timm reads them."""
    config = timm_config(vit.config, preparation)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = timm_state(vit.state_dict(), vit.config)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def read_timm(folder: Path, images: Tensor) -> Tensor:
    """All tokens [B, 1 + registers + N, D] that timm's network of a folder gives for images.

    Raises: UserError if timm is not there: what cannot be checked is not written.
    """
    timm = import_timm()
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return network.forward_features(images)


def import_timm() -> Any:
    """timm, or a UserError in one line."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: its torchvision is another torch's
        raise UserError(
            "an export to timm is checked with timm, which cannot be imported here"
            f" ({str(error).splitlines()[0]}); install timm, or export transformers"
        ) from error
    return timm
