"""Checkpoints as trainers write them: the backbone of the teacher is found in each."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from dino_x.config.options import ModelOptions
from dino_x.errors import UserError
from dino_x.model.weights import load_start
from tests.model.released_format import network, released


def named(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def other(state):
    return {name: value + 1 for name, value in state.items()}


HEAD = {"mlp.0.weight": torch.ones(3, 3)}


def wrapped(kind, state):
    """A checkpoint with the teacher's ``state``, as a trainer writes it."""
    student = other(state)
    if kind == "dino":
        inside = named(named(state, "backbone.") | named(HEAD, "head."), "module.")
        return {
            "student": named(student, "module.backbone."),
            "teacher": inside,
            "epoch": 3,
            "args": argparse.Namespace(arch="vit_small", lr=0.1),
        }
    if kind == "one dict":
        return {"model": named(student, "student.backbone.") | named(state, "teacher.backbone.")}
    if kind == "lightning":
        inside = named(student, "student_embedding_model.wrapped_model._model.")
        inside |= named(state, "teacher_embedding_model.wrapped_model._model.")
        return {"state_dict": inside, "epoch": 3, "global_step": 7}
    if kind == "nested":
        return {"model": {"teacher": named(state, "module.")}, "iteration": 9}
    return named(state, kind)


KINDS = ["dino", "one dict", "lightning", "nested", "module.", "encoder.backbone.", "_orig_mod."]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teachers_backbone_is_found_in_checkpoints_of_trainers(tmp_path, kind, suffix):
    vit = network("dinov2")
    torch.save(wrapped(kind, released(vit)), tmp_path / f"m{suffix}")
    start = load_start(ModelOptions(name=str(tmp_path / f"m{suffix}"), heads=2))
    total = len(vit.state_dict())
    assert start.accounting.line().startswith(f"{total} of {total} tensors loaded")
    for name, value in vit.state_dict().items():
        torch.testing.assert_close(start.vit.state_dict()[name], value)
    several = any("of 2 backbones in the file" in line for line in start.accounting.assumed)
    assert several == (kind in ("one dict", "lightning"))
    heads = {"module.head.mlp.0.weight"} if kind == "dino" else set()
    assert set(start.accounting.unused) == heads


def test_safetensors_of_the_same_names(tmp_path):
    vit = network("dinov3")
    state = {name: value.contiguous() for name, value in released(vit).items()}
    save_file(named(state, "backbone."), tmp_path / "m.safetensors")
    start = load_start(ModelOptions(name=str(tmp_path / "m.safetensors")))
    torch.testing.assert_close(start.vit.state_dict(), vit.state_dict())


def test_a_vit_of_dino_without_layerscale_has_one_of_1(tmp_path):
    vit = network("dinov2")
    with torch.no_grad():
        for name, weight in vit.named_parameters():
            if "lambda1" in name:
                weight.fill_(1.0)
    plain = {n: v for n, v in released(vit).items() if ".ls" not in n}
    torch.save(plain, tmp_path / "m.pth")
    start = load_start(ModelOptions(name=str(tmp_path / "m.pth"), heads=2))
    assert "LayerScale 1, as the file has none" in start.accounting.assumed
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = start.vit.eval()(images).pooler_output
        torch.testing.assert_close(found, vit(images).pooler_output)


class Code:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize("content", [Code(), {"args": Code()}, {"teacher": {"a": Code()}}])
def test_no_code_of_a_checkpoint_is_run(tmp_path, content, capsys):
    torch.save(content, tmp_path / "m.ckpt")
    with pytest.raises(UserError, match="is no file of plain tensors"):
        load_start(ModelOptions(name=str(tmp_path / "m.ckpt")))
    assert "code was run" not in capsys.readouterr().out


def test_a_file_without_a_vit_is_refused(tmp_path):
    torch.save({"teacher": {"conv1.weight": torch.ones(2)}}, tmp_path / "m.pth")
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "m.safetensors")
    (tmp_path / "text.safetensors").write_text("nothing")
    for name in ("m.pth", "m.safetensors"):
        with pytest.raises(UserError, match="it has no 'cls_token'"):
            load_start(ModelOptions(name=str(tmp_path / name)))
    with pytest.raises(UserError, match="no file of plain tensors"):
        load_start(ModelOptions(name=str(tmp_path / "text.safetensors")))
