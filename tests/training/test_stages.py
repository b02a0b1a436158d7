"""Going on from a start: the backbone waits for its heads, crops grow, a run hands on its own."""

import pytest
import torch
import yaml

from dino_x.cli import main
from dino_x.config.presets import CONTINUE
from dino_x.config.resolve import Facts, resolve
from dino_x.losses.ranks import ALONE
from dino_x.model import backbone as backbone_module
from dino_x.training.images import early_checks
from dino_x.training.prepare import student_backbone
from tests.training.runs import losses, metrics, pretrain, weights

FLAGS = ("--effective-batch", 8, "--micro-batch", 4, "--centering", "sinkhorn")


@pytest.fixture(scope="module")
def start(films, tmp_path_factory):
    """A finished run of two steps."""
    out = tmp_path_factory.mktemp("runs") / "start"
    assert pretrain(films, out, *FLAGS, "--steps", 2) == 0
    return out


def go_on(start, films, out, *flags):
    arguments = ["pretrain", "--model", start, "--data", films, "--out", out, *FLAGS, *flags]
    return main([str(argument) for argument in arguments])


def parts(run, steps, prefix):
    found = weights(run, steps)
    return {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}


def test_a_frozen_backbone_is_not_touched_while_the_heads_train(start, films, tmp_path):
    out = tmp_path / "run"
    flags = ("--steps", 4, "--prototypes", 41, "--set", "optim.freeze_backbone=2",
             "checkpoint.every=1", "checkpoint.keep=9", "optim.weight_decay=0.5",
             "optim.warmup=0", "loss.koleo_weight=1")  # fmt: skip
    assert go_on(start, films, out, *flags) == 0
    before = parts(start, 2, ".teacher.backbone.")
    for who in (".student.", ".teacher."):
        for step in (1, 2):
            for name, value in parts(out, step, f"{who}backbone.").items():
                assert torch.equal(value, before[name]), (who, step, name)
        moved = parts(out, 4, f"{who}backbone.")
        assert not torch.equal(
            moved["vit.model.layer.1.mlp.up_proj.weight"],
            before["vit.model.layer.1.mlp.up_proj.weight"],
        )
    heads = [parts(out, step, ".student.dino_head.") for step in (1, 2)]
    assert not torch.equal(heads[0]["mlp.0.weight"], heads[1]["mlp.0.weight"])
    assert len(metrics(out)) == 4


def test_a_run_resumed_while_the_backbone_is_frozen_is_the_same(start, films, tmp_path):
    flags = ("--steps", 4, "--set", "model.heads_from=new", "optim.freeze_backbone=2",
             "checkpoint.every=1", "checkpoint.keep=9")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        assert go_on(start, films, out, *flags) == 0
    for step in (2, 3, 4):
        (cut / "checkpoints" / f"step-{step:08d}.pt").unlink()
    assert main(["pretrain", "--out", str(cut), "--resume"]) == 0
    assert losses(cut) == losses(whole)
    expected = weights(whole, 4)
    for name, value in weights(cut, 4).items():
        assert torch.equal(value, expected[name]), name


def test_auto_goes_on_from_weights_with_the_preset_for_it(start):
    resolved = resolve({"model.name": str(start), "train.steps": 40}, Facts(1000))
    options, line = resolved.options, resolved.preset
    assert "preset continue, for a model that is loaded" in line
    assert options.optim.lr == CONTINUE["optim.lr"]
    assert options.optim.freeze_backbone == 10
    assert options.head.prototypes == 256  # of the small preset, for few images
    facts = Facts(1000, {"model.heads_from": "run"})
    own = resolve({"model.name": str(start), "train.steps": 40}, facts).options
    assert own.optim.freeze_backbone == 0
    large = resolve({"model.name": str(start)}, Facts(10**6)).options
    assert large.head.prototypes == 65536


def test_highres_makes_the_crops_of_the_run_before_larger(start, films, tmp_path):
    out = tmp_path / "run"
    flags = ("--preset", "highres", "--steps", 3, "--set", "views.local_crops=1",
             "checkpoint.every=1", "checkpoint.keep=9")  # fmt: skip
    assert go_on(start, films, out, *flags) == 0
    views = yaml.safe_load((out / "config.yaml").read_text())["views"]
    assert views["global_size"] == 64
    sets = [(s["global_size"], s["local_size"], s["gram_size"]) for s in views["sizes"]]
    assert sets == [
        (64, 16, 96),
        (96, 16, 144),
        (96, 24, 144),
        (96, 32, 144),
        (96, 48, 144),
    ]
    assert all(step["gram"] >= 0 for step in metrics(out))
    gram, first = parts(out, 3, ".gram."), parts(start, 2, ".teacher.backbone.")
    for name, value in gram.items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=1e-6)
    before = losses(out)
    for step in (2, 3):
        (out / "checkpoints" / f"step-{step:08d}.pt").unlink()
    assert main(["pretrain", "--out", str(out), "--resume"]) == 0
    assert losses(out) == before


def test_the_weights_that_a_run_starts_from_are_loaded_once(start, films, tmp_path, monkeypatch):
    loads, load = [], backbone_module.load_start
    monkeypatch.setattr(
        backbone_module, "load_start", lambda *arguments: (loads.append(1), load(*arguments))[1]
    )
    settings = ("--steps", 1, "--set", "report.page=false", "model.drop_path=0.25")
    assert go_on(start, films, tmp_path / "run", *settings) == 0
    assert len(loads) == 1


def test_a_preset_reaches_weights_that_are_loaded_already(start, films, tmp_path):
    """They are loaded before the preset is known."""
    early = early_checks({"model.name": str(start)}, ALONE)
    options = resolve({"model.name": str(start), "preset": "continue"}, Facts(100)).options
    assert early.options.model.drop_path != options.model.drop_path
    assert student_backbone(options, early.backbone).drop_path == options.model.drop_path
