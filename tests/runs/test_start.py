"""A run that starts from weights: what is said, what is taken over, what is refused."""

import re

import pytest
import torch

from dino_x.cli import main
from tests.conftest import tiny_settings
from tests.model.released_format import network, released
from tests.training.runs import losses, metrics, pretrain, weights

QUICK = ("--effective-batch", "8", "--micro-batch", "4", "--steps", "2", "--centering", "sinkhorn")


def start_from(model, films, out, *flags, settings=None):
    """``dino-x pretrain --model``, with the tiny run's options but the model's; its status."""
    if settings is None:
        settings = [s for s in tiny_settings()[1:] if not s.startswith(("model.", "preset"))]
    arguments = ["pretrain", "--data", str(films), "--out", str(out), "--model", str(model)]
    values = ["--set", *settings] if settings else []
    return main([*arguments, *QUICK, *values, *map(str, flags)])


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    """A finished run of two steps."""
    out = tmp_path_factory.mktemp("runs") / "first"
    assert pretrain(films, out, *QUICK, head__prototypes=53, views__local_crops=2) == 0
    return out


@pytest.mark.parametrize("kind", ["dinov2", "dinov2 registers"])
def test_dinov2_trains_and_is_saved_as_dinov2(films, tmp_path, kind, capsys):
    from transformers import AutoModel

    vit = network(kind)
    torch.save(released(vit), tmp_path / "m.pth")
    out = tmp_path / "run"
    assert start_from(tmp_path / "m.pth", films, out, "--set", "model.heads=2") == 0
    total = len(vit.state_dict())
    assert f"weights   {total} of {total} tensors loaded" in capsys.readouterr().out
    trained = AutoModel.from_pretrained(out / "model")
    assert type(trained) is type(vit)
    before, after = vit.state_dict(), trained.state_dict()
    assert {n for n in before if torch.equal(before[n], after[n])} <= {"embeddings.mask_token"}


def test_one_channel_trains_and_evaluates(films, tmp_path):
    network("dinov3").save_pretrained(tmp_path / "m")
    flags = ("--set", "model.channels=1", "--labels", "folder")
    assert start_from(tmp_path / "m", films, tmp_path / "run", *flags) == 0
    assert weights(tmp_path / "run", 2)[
        ".student.backbone.vit.embeddings.patch_embeddings.weight"
    ].shape == (48, 1, 8, 8)


def test_a_run_hands_on_its_heads_and_crops(run, films, tmp_path, capsys):
    still = ["optim.lr=1e-12", "optim.lr_end=0"]
    assert start_from(run, films, tmp_path / "next", settings=still) == 0
    assert "heads: the run's" in capsys.readouterr().out
    before, after = weights(run, 2), weights(tmp_path / "next", 2)
    assert after[".student.dino_head.last_layer"].shape[0] == 53
    for name, value in before.items():
        if name.startswith(".teacher."):
            for network_ in (".teacher.", ".student."):
                found = after[network_ + name.removeprefix(".teacher.")]
                torch.testing.assert_close(found, value, rtol=0, atol=1e-6, msg=name)
    text = (tmp_path / "next" / "config.yaml").read_text()
    assert "local_crops: 2" in text
    assert f"name: {run}" in text


def test_new_heads_on_a_runs_backbone(run, films, tmp_path, capsys):
    for flags in (("--set", "model.heads_from=new"), ("--prototypes", "47")):
        out = tmp_path / flags[-1]
        settings = ["head.hidden=48"]
        assert start_from(run, films, out, *flags, settings=settings) == 0
        assert "heads: new" in capsys.readouterr().out
    assert weights(tmp_path / "47", 2)[".student.dino_head.last_layer"].shape[0] == 47


def test_heads_of_another_shape_are_refused(run, films, tmp_path, capsys):
    flags = ("--set", "model.heads_from=run", "head.prototypes=20")
    assert start_from(run, films, tmp_path / "next", *flags, settings=[]) == 2
    assert re.search("heads of .* have other shapes", capsys.readouterr().err)
    network("dinov3").save_pretrained(tmp_path / "m")
    flags = ("--set", "model.heads_from=run")
    assert start_from(tmp_path / "m", films, tmp_path / "next", *flags) == 2
    assert "no RUN with a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


def test_a_start_from_weights_resumes_exactly(run, films, tmp_path):
    flags = ("--steps", "4", "--set", "checkpoint.every=2", "checkpoint.keep=9")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        assert start_from(run, films, out, *flags, settings=[]) == 0
    (cut / "checkpoints" / "step-00000004.pt").unlink()
    assert main(["pretrain", "--out", str(cut), "--resume"]) == 0
    assert len(metrics(cut)) == 4
    assert losses(cut) == losses(whole)


def test_too_few_tensors_are_refused_in_one_line_unless_allowed(films, tmp_path, capsys):
    state = released(network("dinov3"))
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, tmp_path / "m.pth")
    assert start_from(tmp_path / "m.pth", films, tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert re.search(r"only 40 of 41 tensors .* missing: .*layer.1.mlp.up_proj.weight", error)
    assert not (tmp_path / "run").exists()
    assert start_from(tmp_path / "m.pth", films, tmp_path / "run", "--allow-partial") == 0
    assert "40 of 41 tensors loaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda path: path.mkdir(), "is no model: it has no config.json"),
        (lambda path: network("dinov3").save_pretrained(path), "30 is not a multiple of the patch"),
    ],
    ids=["no model", "crops that do not divide"],
)
def test_bad_starts(films, tmp_path, capsys, make, pattern):
    make(tmp_path / "m")
    flags = ("--set", "views.global_size=30")
    assert start_from(tmp_path / "m", films, tmp_path / "run", *flags) == 2
    assert re.search(pattern, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_hub_name_without_network(films, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("dino_x.model.pretrained.HUB_TIMEOUT", 0.01)
    assert start_from("facebook/no-such-model", films, tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "no such model in the local cache" in error
