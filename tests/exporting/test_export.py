"""What is exported gives the run's features, says what it is, and tells nothing private."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModel

from dino_x.cli import main
from dino_x.errors import UserError
from dino_x.evaluation.backbone import load_backbone
from dino_x.exporting import run as export_run
from dino_x.exporting.card import licence_notes, public
from dino_x.exporting.positions import at_size
from dino_x.exporting.run import export
from dino_x.exporting.timm_format import timm_config, timm_state
from tests.model.released_format import network, released
from tests.tiny import image_processor
from tests.training.runs import pretrain


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """A run of one step that went on from another, evaluated by the folders as classes."""
    place = tmp_path_factory.mktemp("runs")
    flags = ("--effective-batch", "8", "--micro-batch", "8", "--steps", "1")
    torch.save(released(network("dinov3")), place / "start.pth")
    out = place / "secret-hospital" / "second"
    arguments = ["pretrain", "--data", str(films), *flags, "--set", "views.global_size=32",
                 "views.local_crops=0"]  # fmt: skip
    assert main([*arguments, "--model", str(place / "start.pth"), "--out", str(place / "1")]) == 0
    out.parent.mkdir()
    labels = ["--labels", "folder"]
    assert main([*arguments, "--model", str(place / "1"), "--out", str(out), *labels]) == 0
    return out


def tokens(model, images):
    with torch.no_grad():
        return model(images).last_hidden_state


def test_transformers(run, tmp_path, capsys):
    to = tmp_path / "mine"
    assert main(["export", str(run), "--to", str(to), "--format", "transformers"]) == 0
    assert re.search(r"read back, its features differ by \S+ at most", capsys.readouterr().out)
    images = torch.randn(2, 3, 32, 32)
    own, exported = (AutoModel.from_pretrained(place) for place in (run / "model", to))
    torch.testing.assert_close(tokens(exported, images), tokens(own, images), rtol=0, atol=1e-6)
    assert image_processor(to, backend="pil").size["height"] == 32
    assert {path.name for path in to.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


@pytest.mark.slow
def test_onnx_takes_any_batch(run, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    to = tmp_path / "mine"
    export(run, to, "onnx", Console(quiet=True))
    session = runtime.InferenceSession(to / "model.onnx", providers=["CPUExecutionProvider"])
    own = AutoModel.from_pretrained(run / "model")
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        cls, patches = session.run(None, {"pixel_values": images.numpy()})
        expected = tokens(own, images)
        torch.testing.assert_close(torch.from_numpy(cls), expected[:, 0], rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(patches), expected[:, 4:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["dinov3", "dinov3 gated", "dinov2", "dinov2 registers"])
def test_timm(kind, tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed, or torchvision does not fit",
                               exc_type=(ImportError, RuntimeError))  # fmt: skip
    vit = network(kind, image_size=32)
    vit.save_pretrained(tmp_path / "m")
    to = tmp_path / "mine"
    export(tmp_path / "m", to, "timm", Console(quiet=True))
    images = torch.randn(2, 3, 32, 32)
    model = timm.create_model(f"local-dir:{to}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(images), tokens(vit, images), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(model(images), tokens(vit, images)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 registers"])
def test_a_dinov2_that_went_on_at_another_size_is_exported_at_that_size(kind, films, tmp_path):
    """Its own grid is of 4 x 4 patches of 8 px; it was trained on 6 x 6."""
    network(kind, image_size=32).save_pretrained(tmp_path / "m")
    flags = ["--data", str(films), "--effective-batch", "4", "--steps", "1", "--preset", "continue",
             "--set", "views.global_size=48", "views.local_crops=0", "head.prototypes=32",
             "head.hidden=16", "head.bottleneck=8", "report.page=false"]  # fmt: skip
    out = tmp_path / "run"
    assert main(["pretrain", "--model", str(tmp_path / "m"), "--out", str(out), *flags]) == 0
    backbone = load_backbone(out, device="cpu")
    kept = backbone.model.embeddings.position_embeddings
    vit = at_size(backbone.model, backbone.preparation.image_size)
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(tokens(vit, images), tokens(backbone.model, images))
    assert (kept.shape[1], vit.embeddings.position_embeddings.shape[1]) == (17, 37)

    config = timm_config(vit.config, backbone.preparation)
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert config["model_args"]["img_size"] == 48
    positions = 36 if kind == "dinov2 registers" else 37
    assert timm_state(vit.state_dict(), vit.config)["pos_embed"].shape[1] == positions
    timm = pytest.importorskip("timm", reason="timm is not installed, or torchvision does not fit",
                               exc_type=(ImportError, RuntimeError))  # fmt: skip
    export(out, tmp_path / "timm", "timm", Console(quiet=True))
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert model.patch_embed.img_size == (48, 48)
    with torch.no_grad():
        found = model.forward_features(images)
    torch.testing.assert_close(found, tokens(backbone.model, images), rtol=1e-4, atol=1e-4)


def test_timms_names_and_shapes_of_every_tensor():
    """Known without timm: its own names, as its released files have them."""
    vit = network("dinov3")
    state = timm_state(vit.state_dict(), vit.config)
    assert state["blocks.1.attn.qkv.weight"].shape == (144, 48)
    assert set(state) == {
        "cls_token", "reg_token", "patch_embed.proj.weight", "patch_embed.proj.bias",
        "norm.weight", "norm.bias",
        *(f"blocks.{n}.{name}" for n in range(2) for name in (
            "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "gamma_1", "gamma_2",
            "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight", "attn.proj.bias",
            "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias")),
    }  # fmt: skip
    query = vit.model.layer[1].attention.q_proj.weight
    assert torch.equal(state["blocks.1.attn.qkv.weight"][:48], query)


def test_the_card_says_what_it_is_and_nothing_private(run, tmp_path):
    to = tmp_path / "mine"
    export(run, to, "transformers", Console(quiet=True))
    card = (to / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "other"
    for text in (
        "`dinov3_vit`, 2 layers of 48 features", "1 of 8 images",
        "dino-x export second --to mine --format transformers",
        "dino-x pretrain --config config.yaml --data FOLDER --out second",
        "DINOv3 License", "inherit it", "1. run `1`", "2. file `start.pth`", "41 of 41 tensors",
        "| metric | model | ", "effective_batch: 8",
    ):  # fmt: skip
        assert text in card, text
    assert re.search(r"- images: \d\d, without labels; .* were left out", card)
    figures = json.loads((run / "evaluation.json").read_text())["results"]["model"]
    (setting, accuracy), *_ = figures["knn"].items()
    assert f"{accuracy['balanced_accuracy']['value']:.3f} (" in card
    assert f"knn {setting}, balanced accuracy" in card
    for private in ("secret-hospital", str(tmp_path.parent), "/tmp", "films0", "paths:"):
        assert private not in card, private
    assert "secret" not in json.dumps(json.loads((run / "origin.json").read_text()))


def test_settings_tell_no_path_of_a_model_that_is_gone():
    settings = {"model.name": "hospital/run", "gram.teacher": "C:\\hospital\\old", "train.steps": 2,
                "data.paths": ["hospital"], "teacher.model": "/hospital/big/"}  # fmt: skip
    text = public(settings, [])
    assert "hospital" not in text
    assert "name: run" in text
    assert "teacher: old" in text
    hub = [{"kind": "hub", "name": "facebook/dinov2-base"}]
    assert "facebook/dinov2-base" in public({"model.name": "facebook/dinov2-base"}, hub)


def test_the_card_tells_no_path_of_other_models_nor_a_condition(run, tmp_path):
    """What was compared with --against, and chosen with --where, is often called after people."""
    copy = shutil.copytree(run, tmp_path / "secret" / "run")
    evaluation = json.loads((copy / "evaluation.json").read_text())
    others = ("/home/secret/study", "../secret/old run/", "facebook/dinov2-base")
    for other in others:
        evaluation["results"][other] = evaluation["results"]["model"]
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    settings = yaml.safe_load((copy / "config.yaml").read_text())
    settings["data"]["where"] = "path LIKE '%secret%'"
    settings["data"]["index"] = "/home/secret/i.parquet"
    (copy / "config.yaml").write_text(yaml.safe_dump(settings))
    export(copy, tmp_path / "to", "transformers", Console(quiet=True))
    card = (tmp_path / "to" / "README.md").read_text()
    assert "| study | old run | facebook/dinov2-base |" in card
    assert "secret" not in card


@pytest.mark.parametrize(
    ("chain", "tag", "pattern"),
    [
        ([], "other", "new weights"),
        ([{"kind": "hub", "name": "facebook/dinov3-vits16-pretrain-lvd1689m",
           "architecture": "dinov3_vit"}], "other", "inherit it"),
        ([{"kind": "folder", "name": "backbone", "architecture": "dinov3_vit"}], "other",
         "If it came from Meta's DINOv3"),
        ([{"kind": "hub", "name": "facebook/dinov2-base", "architecture": "dinov2"}],
         "apache-2.0", "Apache-2.0"),
        ([{"kind": "run", "name": "first", "architecture": "dinov3_vit"}], "other",
         "began with new weights"),
    ],
)  # fmt: skip
def test_licence_notes(chain, tag, pattern):
    found, notes = licence_notes(chain)
    assert found == tag
    assert re.search(pattern, notes)


def test_an_export_that_differs_is_not_kept(run, tmp_path, monkeypatch):
    write, read = export_run.FORMATS["transformers"]

    def spoiled(backbone, folder):
        with torch.no_grad():
            backbone.model.norm.bias.add_(0.01)
        write(backbone, folder)
        with torch.no_grad():
            backbone.model.norm.bias.sub_(0.01)

    monkeypatch.setitem(export_run.FORMATS, "transformers", (spoiled, read))
    with pytest.raises(UserError, match=r"features differ by .* nothing was written"):
        export(run, tmp_path / "mine", "transformers", Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_what_is_refused_in_one_line(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    to = tmp_path / "mine"
    for arguments, pattern in (
        ((run, "--to", tmp_path / "full", "--format", "transformers"), "is there already"),
        ((tmp_path / "empty", "--to", to, "--format", "transformers"), "is no model"),
        ((run, "--to", to, "--format", "onnx"), r"needs onnxruntime: pip install onnx onnx"),
        ((run, "--to", to, "--format", "timm"), "checked with timm, .* install timm"),
        (
            (run, "--to", to, "--format", "tensorflow"),
            "one of transformers, timm, onnx; got 'tens",
        ),
    ):
        assert main(["export", *map(str, arguments)]) == 2
        error = capsys.readouterr().err.strip()
        assert re.search(pattern, error), error
        assert "\n" not in error
        assert not to.exists()


def test_a_run_of_one_channel_and_one_from_new_weights(films, tmp_path):
    flags = ("--effective-batch", 8, "--micro-batch", 8, "--steps", 1)
    assert pretrain(films, tmp_path / "run", *flags, model__channels=1) == 0
    assert not (tmp_path / "run" / "origin.json").exists()
    export(tmp_path / "run", tmp_path / "mine", "transformers", Console(quiet=True))
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "1 channel, 32 x 32 px" in card
    assert "new weights" in card
