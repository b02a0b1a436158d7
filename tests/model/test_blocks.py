"""Blocks against transformers' own, with branches multiplied by 0 or 1 / (1 - rate) there."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

from dino_x.model.backbone import Backbone, ForwardRandomness
from dino_x.model.families import layers_of
from tests.model.released_format import skip_old_dinov2

RATE, SIDE, PATCH, LAYERS = 0.4, 24, 8, 3
SIZES = {
    "hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "patch_size": PATCH,
    "image_size": SIDE, "layerscale_value": 0.3,
}  # fmt: skip
NETWORKS = {
    "DINOv3": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**SIZES, intermediate_size=56, num_register_tokens=3)
    ),
    "DINOv3 gated, key bias": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(**SIZES, intermediate_size=40, use_gated_mlp=True, key_bias=True)
    ),
    "DINOv3 without biases": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            **SIZES,
            intermediate_size=40,
            query_bias=False,
            value_bias=False,
            proj_bias=False,
            mlp_bias=False,
        )
    ),
    "DINOv2": lambda: Dinov2Model(Dinov2Config(**SIZES)),
    "DINOv2 SwiGLU": lambda: Dinov2Model(Dinov2Config(**SIZES, use_swiglu_ffn=True)),
    "DINOv2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES)),
}


class Multiplied(nn.Module):
    """Stochastic depth as a product on every row, for transformers' own layer."""

    def __init__(self, keep_2B):
        super().__init__()
        self.factors = [torch.from_numpy(keep / (1 - RATE)) for keep in keep_2B]
        self.calls = 0

    def forward(self, branch):
        self.calls += 1
        return branch * self.factors[(self.calls - 1) % 2][:, None, None]


def networks(name):
    """Transformers' own in float64, with random scales and biases, and ours with its weights."""
    if name.startswith("DINOv2"):
        skip_old_dinov2()
    torch.manual_seed(3)
    plain = NETWORKS[name]().double().eval()
    for parameter in plain.parameters():
        parameter.data.normal_(std=0.3)
    return plain, Backbone(copy.deepcopy(plain), RATE)


def keeps(rows):
    """Some rows keep some branches; a branch that no row keeps, and one that all keep."""
    keep = np.random.default_rng(1).random((LAYERS, 2, rows)) >= RATE
    keep[1, 0], keep[0, 1] = False, True
    assert 0 < keep[2].sum() < keep[2].size
    return keep


def plain_tokens(plain, crops, mask, keep_L2B):
    for layer, keep_2B in zip(layers_of(plain), keep_L2B, strict=True):
        layer.drop_path = Multiplied(keep_2B)
    return plain(crops, bool_masked_pos=mask).last_hidden_state


def gradients(network):
    return {
        name.removeprefix("vit."): parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_looked_at_and_gradients_are_those_of_the_plain_network(name, recompute):
    plain, backbone = networks(name)
    backbone.recompute = recompute
    rows, patches = 5, (SIDE // PATCH) ** 2
    crops = torch.randn(rows, 3, SIDE, SIDE, dtype=torch.float64)
    mask = torch.rand(rows, patches) < 0.4
    keep = keeps(rows)
    looked_at = np.array([0, 3, patches + 1, 4 * patches + 8])
    expected = plain_tokens(plain, crops, mask, keep)
    first = expected.shape[1] - patches
    expected_cls = expected[:, 0]
    expected_patches = expected[:, first:].flatten(0, 1)[torch.from_numpy(looked_at)]
    cls, found = backbone(crops, mask, ForwardRandomness(keep, 1.0), looked_at)
    torch.testing.assert_close(cls, expected_cls, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, expected_patches, rtol=1e-10, atol=1e-10)
    all_cls, all_patches = backbone(crops, mask, ForwardRandomness(keep, 1.0))
    torch.testing.assert_close(all_cls, expected_cls, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(all_patches, expected[:, first:], rtol=1e-10, atol=1e-10)

    weights = torch.randn_like(expected_cls), torch.randn_like(expected_patches)
    (weights[0] * expected_cls).sum().add((weights[1] * expected_patches).sum()).backward()
    (weights[0] * cls).sum().add((weights[1] * found).sum()).backward()
    theirs, ours = gradients(plain), gradients(backbone)
    for parameter, gradient in theirs.items():
        if parameter in ours:
            torch.testing.assert_close(ours[parameter], gradient, rtol=1e-9, atol=1e-10)
        else:  # of the branch that no row keeps
            assert not gradient.any(), parameter
    assert set(ours) <= set(theirs)


@pytest.mark.parametrize("looked_at", [[], [2]])
def test_the_last_block_may_drop_everything(looked_at):
    _, backbone = networks("DINOv3")
    crops = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    keep = np.ones((LAYERS, 2, 2), dtype=bool)
    keep[-1] = False
    every, patches = backbone(crops, None, ForwardRandomness(keep, 1.0))
    cls, some = backbone(crops, None, ForwardRandomness(keep, 1.0), np.array(looked_at, dtype=int))
    torch.testing.assert_close(cls, every)
    torch.testing.assert_close(some, patches[0, looked_at])


def test_called_by_transformers_it_is_the_same_network():
    plain, backbone = networks("DINOv3")
    crops = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    torch.testing.assert_close(
        backbone.vit(crops).last_hidden_state, plain(crops).last_hidden_state
    )
    assert list(backbone.vit.state_dict()) == list(plain.state_dict())


def test_autocast_gives_what_float32_gives_to_its_precision():
    torch.manual_seed(5)
    plain = NETWORKS["DINOv3"]().eval()
    backbone = Backbone(copy.deepcopy(plain), RATE)
    crops = torch.randn(4, 3, SIDE, SIDE)
    randomness = ForwardRandomness(keeps(4), 1.0)
    cls, _ = backbone(crops, None, randomness)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = backbone(crops, None, randomness)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, cls)
    torch.testing.assert_close(mixed, cls, rtol=3e-2, atol=3e-2)


def operations(backbone, crops, randomness, patches_W):
    with FlopCounterMode(display=False) as counter:
        cls, patches = backbone(crops, None, randomness, patches_W)
        (cls.sum() + patches.sum()).backward()
    return counter.get_total_flops()


def test_what_is_dropped_or_not_looked_at_is_not_computed():
    """Half the branches: half the products of the blocks. Only CLS: a block less, or nearly."""
    _, backbone = networks("DINOv3")
    crops = torch.randn(8, 3, SIDE, SIDE, dtype=torch.float64)
    half = np.zeros((LAYERS, 2, 8), dtype=bool)
    none = ForwardRandomness(half.copy(), 1.0)
    half[:, :, ::2] = True
    full = operations(backbone, crops, None, None)
    embedding = operations(backbone, crops, none, None)
    halved = operations(backbone, crops, ForwardRandomness(half, 1.0), None)
    assert halved - embedding == (full - embedding) // 2
    seen = operations(backbone, crops, None, np.empty(0, dtype=int))
    block = (full - embedding) / LAYERS
    assert block / 2 < full - seen < block
