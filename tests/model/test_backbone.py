import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, DINOv3ViTConfig, DINOv3ViTModel, ViTConfig, ViTModel

from dino_x.config.options import ModelOptions
from dino_x.errors import UserError
from dino_x.model.backbone import (
    Backbone,
    ForwardRandomness,
    build_backbone,
    save_vit,
)

TINY = {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "layerscale": 0.5}


def tiny(**more):
    return build_backbone(ModelOptions(name="vit-tiny", **(TINY | more)), 32, seed=0)


def randomness(rows, *, keep=True, rescale=1.0, depth=2):
    return ForwardRandomness(np.full((depth, 2, rows), keep), rescale)


def test_without_randomness_it_is_transformers_model():
    backbone = tiny()
    crops = torch.randn(3, 3, 32, 24)
    plain = DINOv3ViTModel(backbone.vit.config).eval()
    plain.load_state_dict(backbone.vit.state_dict())
    with torch.no_grad():
        cls, patches = backbone(crops, None, None)
        expected = plain(crops).last_hidden_state
    torch.testing.assert_close(cls, expected[:, 0])
    torch.testing.assert_close(patches, expected[:, 5:])


def test_rescale_is_transformers_training_augmentation():
    """With the factor that transformers would draw, the angles are the same."""
    backbone = tiny(drop_path=0.0)
    crops = torch.randn(2, 3, 32, 32)
    plain = DINOv3ViTModel(backbone.vit.config).train()
    plain.load_state_dict(backbone.vit.state_dict())
    assert plain.config.pos_embed_rescale == 2.0
    torch.manual_seed(11)
    with torch.no_grad():
        expected = plain(crops).pooler_output
    torch.manual_seed(11)
    factor = float(torch.empty(1).uniform_(-(torch.log(torch.tensor(2.0))), 0.6931472).exp())
    cls, _ = backbone(crops, None, randomness(2, rescale=factor))
    torch.testing.assert_close(cls, expected, rtol=1e-5, atol=1e-5)
    other, _ = backbone(crops, None, randomness(2, rescale=1.0))
    assert (other - expected).abs().max() > 1e-4


def test_a_row_that_keeps_no_branch_is_its_embedding():
    backbone = tiny(drop_path=0.4)
    crops = torch.randn(2, 3, 32, 32)
    cls, _ = backbone(crops, None, randomness(2, keep=False))
    token = backbone.vit.norm(backbone.vit.embeddings.cls_token[0])
    torch.testing.assert_close(cls, token.expand(2, -1))


def test_each_branch_of_each_row_is_kept_by_its_own_draw():
    """Two rows in one forward equal the same rows alone; branches use different draws."""
    backbone = tiny(drop_path=0.4)
    crops = torch.randn(2, 3, 32, 32)
    keep = np.array([[[True, False], [False, True]], [[False, True], [True, True]]])
    both, _ = backbone(crops, None, ForwardRandomness(keep, 1.0))
    for row in range(2):
        alone, _ = backbone(
            crops[row : row + 1], None, ForwardRandomness(keep[:, :, row : row + 1], 1.0)
        )
        torch.testing.assert_close(alone[0], both[row])
    swapped, _ = backbone(crops, None, ForwardRandomness(keep[:, ::-1], 1.0))
    assert (swapped[0] - both[0]).abs().max() > 1e-4


def test_each_block_has_its_own_rescale():
    """DINOv3 draws the jitter of RoPE's coordinates for each block (section 3.2: "RoPE-box")."""
    backbone = tiny()
    crops = torch.randn(2, 3, 32, 32)
    seen = []
    rope = backbone.rope
    for block in backbone.vit.model.layer:
        block.register_forward_pre_hook(
            lambda _, arguments, named: seen.append(named["position_embeddings"][0]),
            with_kwargs=True,
        )
    found, _ = backbone(crops, None, randomness(2, rescale=np.array([1.5, 0.7])))
    for factor, angles in zip((1.5, 0.7), seen, strict=True):
        rope.rescale = factor
        assert torch.equal(angles, rope(crops)[0])
    for one in (1.5, 0.7):
        same, _ = backbone(crops, None, randomness(2, rescale=one))
        assert (same - found).abs().max() > 1e-5
        by_layer, _ = backbone(crops, None, randomness(2, rescale=np.array([one, one])))
        assert torch.equal(same, by_layer)


def test_a_mask_hides_the_patches_under_it():
    backbone = tiny()
    crops = torch.randn(1, 3, 32, 32)
    other = crops.clone()
    other[:, :, :8, :8] = 0.7  # the first patch
    mask = torch.zeros(1, 16, dtype=torch.bool)
    assert not torch.allclose(backbone(crops, mask, None)[0], backbone(other, mask, None)[0])
    mask[0, 0] = True
    torch.testing.assert_close(backbone(crops, mask, None)[0], backbone(other, mask, None)[0])


def test_new_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = tiny()
    torch.manual_seed(2)
    second = tiny()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = build_backbone(ModelOptions(name="vit-tiny", **TINY), 32, seed=1)
    assert not torch.equal(other.vit.model.layer[0].mlp.up_proj.weight,
                           first.vit.model.layer[0].mlp.up_proj.weight)  # fmt: skip


def test_what_is_saved_loads_with_auto_model_and_as_a_backbone(tmp_path):
    backbone = tiny()
    save_vit(
        backbone.vit.state_dict(),
        type(backbone.vit)(backbone.vit.config),
        tmp_path / "m",
        32,
        [0.4] * 3,
        [0.2] * 3,
    )
    crops = torch.randn(2, 3, 32, 32)
    auto = AutoModel.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        expected = auto(crops).pooler_output
    cls, _ = backbone(crops, None, None)
    torch.testing.assert_close(cls, expected, rtol=0, atol=1e-6)
    again = build_backbone(ModelOptions(name=str(tmp_path / "m")), 32, seed=5)
    torch.testing.assert_close(again(crops, None, None)[0], expected, rtol=0, atol=1e-6)
    assert (again.mean, again.std) == ([0.4] * 3, [0.2] * 3)
    assert not list(tmp_path.glob("*.partial"))


def test_sizes_are_those_of_the_released_models():
    config = DINOv3ViTConfig()  # transformers' default is ViT-S/16
    backbone = build_backbone(ModelOptions(name="vits16"), 224, seed=0)
    found = backbone.vit.config
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        assert getattr(found, name) == getattr(config, name)


def test_a_loaded_model_keeps_its_sizes(tmp_path):
    backbone = tiny()
    save_vit(
        backbone.vit.state_dict(),
        type(backbone.vit)(backbone.vit.config),
        tmp_path / "m",
        32,
        [0.5] * 3,
        [0.2] * 3,
    )
    with pytest.raises(UserError, match="model.depth cannot be changed"):
        build_backbone(ModelOptions(name=str(tmp_path / "m"), depth=3), 32, seed=0)


def test_a_folder_with_missing_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    backbone = tiny()
    save_vit(
        backbone.vit.state_dict(),
        type(backbone.vit)(backbone.vit.config),
        tmp_path / "m",
        32,
        [0.5] * 3,
        [0.2] * 3,
    )
    path = tmp_path / "m" / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "up_proj.weight" in name)]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"only 40 of 41 tensors.*missing: model.*up_proj"):
        build_backbone(ModelOptions(name=str(tmp_path / "m")), 32, seed=0)


def test_another_architecture_is_refused(tmp_path):
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="is a 'vit'; known are dinov3_vit, dinov2"):
        build_backbone(ModelOptions(name=str(tmp_path / "vit")), 32, seed=0)


def test_an_unknown_name_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="did you mean 'vits16'"):
        build_backbone(ModelOptions(name="vit-s16"), 32, seed=0)
    (tmp_path / "config.json").write_text(json.dumps({"nothing": 1}))
    with pytest.raises(UserError, match="cannot be loaded: Unrecognized model"):
        build_backbone(ModelOptions(name=str(tmp_path)), 32, seed=0)


def test_heads_must_split_the_width():
    with pytest.raises(UserError, match="set model.heads"):
        build_backbone(ModelOptions(name="vit-tiny", width=50, heads=3), 32, seed=0)


def test_backbone_is_a_module_whose_copy_has_its_own_randomness():
    import copy

    backbone = tiny()
    twin = copy.deepcopy(backbone)
    assert isinstance(twin, Backbone)
    crops = torch.randn(1, 3, 32, 32)
    backbone(crops, None, randomness(1, rescale=1.5))
    assert twin.rope is twin.vit.rope_embeddings
    assert (backbone.rope.rescale, twin.rope.rescale) == (1.5, 1.0)
