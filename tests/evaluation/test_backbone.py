"""Which preparation belongs to a model, and what is refused as one."""

import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.model.pretrained import find_model, read_preparation

from .conftest import MEAN, SIZE, STD, save_tiny


class Config:
    """As much of a transformers config as is looked at."""

    model_type = "tiny"

    def __init__(self, num_channels=3, image_size=518):
        self.num_channels = num_channels
        self.image_size = image_size


def prepare(folder, config=None, **stated):
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return read_preparation(folder, config or Config())


def test_a_run_is_loaded_from_its_model_folder(tmp_path):
    save_tiny(tmp_path / "model")
    preparation = load_backbone(tmp_path, device="cpu").preparation
    assert (preparation.image_size, preparation.mean, preparation.std) == (SIZE, (MEAN,), (STD,))
    assert preparation.stated


def test_dinov2_is_loaded_with_its_crop_and_statistics(tmp_path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    prepare(
        tmp_path,
        size={"shortest_edge": 64},
        do_center_crop=True,
        crop_size={"height": 42, "width": 42},
        **statistics,
    )
    backbone = load_backbone(tmp_path, device="cpu")
    assert backbone.preparation.image_size == 42
    assert list(backbone.preparation.mean) == statistics["image_mean"]
    assert not backbone.model.training


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 1.0])
def test_the_rescale_factor_goes_into_mean_and_std(tmp_path, factor):
    preparation = prepare(
        tmp_path, size={"height": 8, "width": 8}, rescale_factor=factor,
        image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7],
    )  # fmt: skip
    pixels = np.array([0.0, 100.0, 255.0])
    ours = (pixels / 255 - preparation.mean[1]) / preparation.std[1]
    np.testing.assert_allclose(ours, (pixels * factor - 0.2) / 0.6, rtol=1e-12)


@pytest.mark.parametrize(
    ("stated", "mean", "std"),
    [
        ({"do_normalize": False, "image_mean": [9.0]}, 0, 1),
        ({"do_rescale": False, "image_mean": [127.5], "image_std": [255]}, 0.5, 1),
        ({"image_mean": 0.5, "image_std": 0.5}, 0.5, 0.5),
    ],
)
def test_steps_that_are_switched_off_are_left_out(tmp_path, stated, mean, std):
    preparation = prepare(tmp_path, size=[8, 8], **stated)
    assert preparation.mean == pytest.approx([mean] * 3)
    assert preparation.std == pytest.approx([std] * 3)


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(1, (0.5,), (0.25,)), (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))],
)
def test_without_the_file_size_and_statistics_are_assumed(tmp_path, channels, mean, std):
    preparation = read_preparation(tmp_path, Config(channels, image_size=96))
    assert not preparation.stated
    assert preparation.image_size == 96
    assert (preparation.mean, preparation.std) == (mean, std)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"size": {"height": 8, "width": 9}}, "not square"),
        ({"size": {"longest_edge": 9}}, "not square"),
        ({"size": 8, "image_mean": [0.5, 0.5]}, "2 values .* 3 channels"),
        ({"size": 8, "image_mean": "half"}, "cannot be read"),
    ],
)
def test_preparations_that_cannot_be_used_are_refused(tmp_path, stated, message):
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, **stated)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no model: it has no config\.json"):
        load_backbone(tmp_path)
    with pytest.raises(UserError, match="no such model folder"):
        load_backbone(tmp_path / "nowhere")


def test_a_text_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="no vision model"):
        load_backbone(tmp_path)


def test_a_damaged_config_or_file_of_weights_is_refused(tmp_path):
    save_tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_backbone(tmp_path)


def test_missing_weights_are_refused_instead_of_drawn_at_random(tmp_path):
    save_tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("norm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights, such as norm\.weight"):
        load_backbone(tmp_path)


def test_pickled_weights_are_not_loaded(tmp_path):
    save_tiny(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_backbone(tmp_path)


def test_a_hub_name_without_network_fails_in_one_line_and_quickly(tmp_path, monkeypatch):
    from dino_x.model import pretrained

    def unreachable(self, name, timeout):
        assert timeout <= 10
        raise ConnectionError("Name or service not known\nmore lines")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained.HfApi, "model_info", unreachable)
    started = time.monotonic()
    with pytest.raises(UserError, match="hub cannot be reached: Name or service") as error:
        find_model("someone/no-such-model-dino-x")
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 5  # the hub's client would go on trying for 23 s


def test_a_released_file_of_weights_is_evaluated_as_it_is(tmp_path):
    from tests.model.released_format import network, released

    vit = network("dinov3")
    torch.save(released(vit), tmp_path / "m.pth")
    loaded = load_backbone(tmp_path / "m.pth", device="cpu")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(images).pooler_output, vit(images).pooler_output)
    assert not loaded.preparation.stated
