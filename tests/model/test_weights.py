"""Weights of every format load whole, give transformers' features, or say what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from dino_x.config.options import ModelOptions
from dino_x.errors import UserError
from dino_x.model import families
from dino_x.model.accounting import Accounting
from dino_x.model.backbone import ForwardRandomness, build_backbone, save_vit
from dino_x.model.pretrained import IMAGENET
from dino_x.model.weights import load_start
from tests.model.released_format import KINDS, network, released, without

CROPS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LARGER = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(2))


def backbone(name, **more):
    return build_backbone(ModelOptions(name=str(name), drop_path=0.0, **more), 32, seed=0)


def tokens_of(vit, crops, mask=None):
    with torch.no_grad():
        out = vit(crops, bool_masked_pos=mask).last_hidden_state
    return out[:, 0], out[:, 1 + getattr(vit.config, "num_register_tokens", 0) :]


def saved(kind, folder, format_, **more):
    """A network, saved in a format; where it is."""
    vit = network(kind, **more)
    if format_ == "transformers":
        vit.save_pretrained(folder / "m")
        return vit, folder / "m"
    torch.save(released(vit, chunks=format_ == "pth in chunks"), folder / "m.pth")
    return vit, folder / "m.pth"


@pytest.mark.parametrize("format_", ["transformers", "pth", "pth in chunks"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_loads_and_features_are_those_of_transformers(tmp_path, kind, format_):
    vit, path = saved(kind, tmp_path, format_)
    loaded = backbone(path, heads=None if format_ == "transformers" or "v3" in kind else 2)
    total = len(vit.state_dict())
    assert loaded.accounting.line().startswith(f"{total} of {total} tensors loaded")
    assert not loaded.accounting.unused
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    for crops, masked in ((CROPS, None), (CROPS, mask), (LARGER, None)):
        cls, patches = loaded(crops, masked, None)
        expected_cls, expected_patches = tokens_of(vit, crops, masked)
        torch.testing.assert_close(cls, expected_cls, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(patches, expected_patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_in_the_format_it_came_in(tmp_path, kind):
    vit, path = saved(kind, tmp_path, "transformers")
    loaded = backbone(path)
    save_vit(
        loaded.vit.state_dict(),
        type(loaded.vit)(loaded.vit.config),
        tmp_path / "out",
        32,
        loaded.mean,
        loaded.std,
    )
    again = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(vit)
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(path / "model.safetensors").keys()
    )
    torch.testing.assert_close(tokens_of(again, CROPS)[1], tokens_of(vit, CROPS)[1])


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 registers"])
def test_stochastic_depth_of_dinov2_is_counted(tmp_path, kind):
    _, path = saved(kind, tmp_path, "transformers")
    loaded = build_backbone(ModelOptions(name=str(path), drop_path=0.4), 32, seed=0)
    keep = torch.tensor([[[True, False], [False, True]], [[False, True], [True, True]]])
    both, _ = loaded(CROPS[:2], None, ForwardRandomness(keep, 1.0))
    for row in range(2):
        draws = ForwardRandomness(keep[:, :, row : row + 1], 1.0)
        alone, _ = loaded(CROPS[row : row + 1], None, draws)
        torch.testing.assert_close(alone[0], both[row], rtol=1e-5, atol=1e-5)
    swapped, _ = loaded(CROPS[:2], None, ForwardRandomness(keep.flip(1), 1.0))
    assert (swapped[0] - both[0]).abs().max() > 1e-3


@pytest.mark.parametrize("mean_std", [IMAGENET, ((0.1, 0.5, 0.7), (0.3, 0.2, 0.5))])
@pytest.mark.parametrize("kind", ["dinov3", "dinov2 registers"])
def test_one_channel_of_rgb_weights_has_their_features_of_a_grey_image(tmp_path, kind, mean_std):
    vit, path = saved(kind, tmp_path, "transformers")
    mean, std = mean_std
    facts = {"image_mean": mean, "image_std": std, "size": 32}
    (path / "preprocessor_config.json").write_text(json.dumps(facts))
    grey = torch.rand(4, 1, 32, 32)

    def normalised(mean, std):
        mean, std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        return (grey - mean) / std

    expected = tokens_of(vit, normalised(mean, std))
    one = backbone(path, channels=1)
    assert one.channels == len(one.mean) == 1
    found = one(normalised(one.mean, one.std), None, None)
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)
    assert "summed over 3 channels" in one.accounting.line()
    # five channels that are all alike
    five = backbone(path, channels=5)
    assert five.channels == len(five.mean) == 5
    found = five(normalised(five.mean, five.std).expand(-1, 5, -1, -1), None, None)
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)
    assert "repeated for 5 channels, divided by 5" in five.accounting.line()
    # and back: three channels of the grey network
    save_vit(
        one.vit.state_dict(), type(one.vit)(one.vit.config), tmp_path / "one", 32, one.mean, one.std
    )
    three = backbone(tmp_path / "one", channels=3)
    found = three(normalised(three.mean, three.std).expand(-1, 3, -1, -1), None, None)
    for new, old in zip(found, expected, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov3", "dinov2"])
def test_patches_of_another_size_see_an_enlarged_image_the_same(tmp_path, kind):
    vit, path = saved(kind, tmp_path, "transformers")
    larger = backbone(path, patch_size=12)
    assert larger.patch_size == 12
    # Enlarge patch by patch, so that no patch sees its neighbours.
    patches = CROPS.unfold(2, 8, 8).unfold(3, 8, 8)  # [3, 3, 4, 4, 8, 8]
    enlarged = torch.nn.functional.interpolate(
        patches.flatten(0, 3)[:, None], (12, 12), mode="bilinear"
    ).view(3, 3, 4, 4, 12, 12)
    image = enlarged.permute(0, 1, 2, 4, 3, 5).reshape(3, 3, 48, 48)
    torch.testing.assert_close(
        larger(image, None, None)[1], tokens_of(vit, CROPS)[1], rtol=1e-4, atol=1e-4
    )
    assert "patches of 8 px resized to 12 px" in larger.accounting.line()


def spoil(path, change):
    """Rewrite a saved model's tensors."""
    file = path / "model.safetensors" if path.is_dir() else path
    if path.is_dir():
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    else:
        torch.save(change(torch.load(file, weights_only=True)), file)


@pytest.mark.parametrize("format_", ["transformers", "pth"])
@pytest.mark.parametrize("kind", ["dinov3", "dinov2"])
def test_missing_extra_and_wrong_tensors_are_named(tmp_path, kind, format_):
    _, path = saved(kind, tmp_path, format_)
    heads = 2 if format_ == "pth" else None

    def change(state):
        state, _ = without(state, r"1\.norm2\.bias")
        name = next(n for n in state if n.endswith("cls_token"))
        return state | {"head.fc": torch.zeros(2), name: torch.zeros(1, 1, 7)}

    spoil(path, change)
    with pytest.raises(UserError, match=r"only \d+ of \d+ tensors") as error:
        backbone(path, heads=heads)
    line = str(error.value)
    assert "missing: " in line
    assert "layer.1.norm2.bias" in line.split("missing: ")[1].split(";")[0]
    assert "of another shape: embeddings.cls_token ([1, 1, 7], not [1, 1, 48])" in line
    assert "not used: head.fc" in line
    assert "--allow-partial" in line
    partial = backbone(path, heads=heads, allow_partial=True)
    assert not partial.accounting.whole
    assert partial.accounting.loaded == partial.accounting.total - 2


def test_an_extra_tensor_alone_is_no_error_but_named(tmp_path):
    _, path = saved("dinov3", tmp_path, "transformers")
    spoil(path, lambda state: state | {"classifier.weight": torch.zeros(2)})
    accounting = backbone(path).accounting
    assert accounting.whole
    assert "in the file but not used: classifier.weight" in accounting.line()


def test_fewer_than_99_percent_is_an_error_and_99_is_not():
    Accounting(200, missing=("a", "b")).check("m", allow_partial=False)
    with pytest.raises(UserError, match="197 of 200.*missing: a, b, c"):
        Accounting(200, missing=("a", "b", "c")).check("m", allow_partial=False)
    with pytest.raises(UserError, match="only 0 of 2"):
        Accounting(2, missing=("a", "b")).check("m", allow_partial=True)


def test_what_training_leaves_around_a_backbone_is_peeled_off(tmp_path):
    vit = network("dinov2")
    state = {f"backbone.{name}": value for name, value in released(vit).items()}
    torch.save({"teacher": state | {"dino_head.w": torch.zeros(1)}}, tmp_path / "m.pth")
    loaded = backbone(tmp_path / "m.pth", heads=2)
    assert loaded.accounting.whole
    assert list(loaded.accounting.unused) == ["dino_head.w"]
    torch.testing.assert_close(loaded(CROPS, None, None)[0], tokens_of(vit, CROPS)[0])


def test_a_key_bias_without_a_mask_is_kept(tmp_path):
    vit, path = saved("dinov3", tmp_path, "pth", key_bias=True)
    loaded = backbone(path)
    assert loaded.vit.config.key_bias
    torch.testing.assert_close(loaded(CROPS, None, None)[0], tokens_of(vit, CROPS)[0])


def test_another_rope_base_is_read_from_the_periods(tmp_path):
    vit, path = saved("dinov3", tmp_path, "pth", rope_theta=30.0)
    loaded = backbone(path)
    assert loaded.vit.config.rope_theta == pytest.approx(30, rel=0.01)
    state = released(vit)
    state["rope_embed.periods"] = torch.tensor([1.0, 9.0, 2.0, 3.0, 4.0, 5.0])
    torch.save(state, path)
    with pytest.raises(UserError, match="not a geometric row"):
        backbone(path)


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_files_that_are_no_weights(tmp_path, capsys):
    torch.save({"x": Payload()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("nothing")
    torch.save({"layer1.0.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in {
        "evil.pth": "no file of plain tensors",
        "text.pth": "no file of plain tensors",
        "resnet.pth": "no 'cls_token'",
        "list.pth": "no 'cls_token'",
        "absent.pth": "no such file of weights",
    }.items():
        with pytest.raises(UserError, match=message):
            load_start(ModelOptions(name=str(tmp_path / name)))
    assert "must never run" not in capsys.readouterr().out


def test_heads_that_the_file_does_not_tell(tmp_path):
    _, path = saved("dinov2", tmp_path, "pth")
    with pytest.raises(UserError, match="does not say how many attention heads.*set model.heads"):
        backbone(path)
    with pytest.raises(UserError, match="model.heads cannot be changed"):
        backbone(saved("dinov2", tmp_path, "transformers")[1], heads=4)


def test_new_tensors_of_a_partial_start_come_from_the_seed(tmp_path):
    _, path = saved("dinov3", tmp_path, "transformers")
    spoil(path, lambda state: without(state, r"up_proj\.weight")[0])
    name = "model.layer.0.mlp.up_proj.weight"
    options = ModelOptions(name=str(path), allow_partial=True)
    first, again, other = (load_start(options, seed).vit.state_dict()[name] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def with_norm(state, prefix):
    """A released state dict with a norm more."""
    return state | {f"{prefix}.weight": torch.ones(48), f"{prefix}.bias": torch.zeros(48)}


def test_a_norm_for_local_crops_alone_is_named(tmp_path):
    """The 7B and the satellite model have one (local_cls_norm); it is used in training alone."""
    _, path = saved("dinov3 7B", tmp_path, "pth")
    spoil(path, lambda state: with_norm(state, "local_cls_norm"))
    accounting = backbone(path).accounting
    assert accounting.whole
    assert list(accounting.unused) == ["local_cls_norm.weight", "local_cls_norm.bias"]
    line = accounting.line()
    assert "not used: local_cls_norm.weight (a norm for the CLS tokens of local crops" in line


def test_a_cls_norm_that_the_architecture_lacks_is_refused(tmp_path):
    _, path = saved("dinov3", tmp_path, "pth")
    spoil(path, lambda state: with_norm(state, "cls_norm"))
    with pytest.raises(UserError) as error:
        backbone(path)
    line = str(error.value)
    assert "has a norm of its own for CLS tokens (cls_norm.weight)" in line
    assert "--allow-partial" in line
    assert "\n" not in line
    partial = backbone(path, allow_partial=True)
    assert list(partial.accounting.unused) == ["cls_norm.weight", "cls_norm.bias"]


def test_what_a_file_does_not_say_is_said_to_be_assumed(tmp_path):
    _, path = saved("dinov3", tmp_path, "pth")
    line = backbone(path).accounting.line()
    assert "assumed, as the file does not say: ImageNet's mean and std of images" in line
    assert "norm epsilon 1e-05" in line
    _, path = saved("dinov2", tmp_path, "pth")
    assert "norm epsilon 1e-06" in backbone(path, heads=2).accounting.line()
    _, folder = saved("dinov3", tmp_path, "transformers")
    assert (
        "assumed, as the file does not say: ImageNet's mean" in backbone(folder).accounting.line()
    )
    facts = {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143], "size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    assert "assumed" not in backbone(folder).accounting.line()


def test_a_transformers_with_another_dinov2_is_named(monkeypatch):
    monkeypatch.setattr(families.transformers, "__version__", "5.17.1")
    families.check_transformers("dinov3_vit")
    with pytest.raises(UserError, match=r"needs transformers 5.20 or later; this is 5.17.1"):
        families.check_transformers("dinov2")
    monkeypatch.setattr(families.transformers, "__version__", "5.20.0.dev0")
    families.check_transformers("dinov2_with_registers")
