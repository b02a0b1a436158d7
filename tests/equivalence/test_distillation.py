"""A larger, frozen RUN trains a smaller model with the same losses."""

import re

import pytest
import torch

from dino_x.cli import main
from tests.conftest import tiny_settings
from tests.equivalence.conftest import relative_error
from tests.equivalence.test_window_gradient import plain_sinkhorn
from tests.model.released_format import network
from tests.training.runs import losses, metrics, pretrain, weights

FLAGS = ("--effective-batch", 8, "--micro-batch", 4, "--centering", "sinkhorn")


@pytest.fixture(scope="module")
def large(films, tmp_path_factory):
    """A run wider and deeper than the tiny one."""
    out = tmp_path_factory.mktemp("runs") / "large"
    sizes = {"model__width": 48, "model__depth": 3, "head__prototypes": 43}
    assert pretrain(films, out, *FLAGS, "--steps", 2, **sizes) == 0
    return out


def distill(large, films, out, *flags):
    """The tiny model with what the large one hands on."""
    settings = [s for s in tiny_settings() if not s.startswith("head.")]
    arguments = ["pretrain", "--data", films, "--out", out, *FLAGS, *flags, *settings]
    return main([*map(str, arguments), f"teacher.model={large}"])


def test_targets_are_the_frozen_teachers(large, bench, tmp_path):
    step = bench(
        teacher__model=str(large), head__prototypes=43, loss__queue=0, loss__koleo_weight=0.1
    )
    _, whole, _ = step.exact(16)
    _, gradient, _ = step.exact(2)
    assert relative_error(gradient, whole) < 1e-10
    frozen = weights(large, 2)[".teacher.dino_head.last_layer"]
    used = step.steps.targets_of
    torch.testing.assert_close(used.dino_head.last_layer.float().cpu(), frozen)
    own = step.steps.teacher.dino_head.last_layer
    assert not torch.allclose(own.float().cpu(), frozen)
    assert all(weight.grad is None for weight in used.parameters())


def test_the_student_sees_whole_crops_and_ibot_compares_patches_at_the_places_of_masks(
    large, bench
):
    """DINOv3, section 5.2; the released distillation hides no patch from the student."""
    step = bench(teacher__model=str(large), head__prototypes=43, loss__koleo_weight=0.0)
    terms, gradient, _ = step.exact(2)
    student, frozen, loss = step.steps.student, step.steps.targets_of, step.options.loss
    (micro,) = step.micro_batches(16)
    masks = micro.masks()
    assert masks.any()
    with torch.no_grad():
        seen = micro.seen_by(frozen.backbone)
        teacher_cls, teacher_patches = frozen(seen.global_crops(), None, None)
        dino_targets = targets_of_rows(teacher_cls, frozen.dino_head, step.temperature)
        ibot_targets = targets_of_rows(teacher_patches[masks], frozen.ibot_head, step.temperature)
    student.zero_grad(set_to_none=True)
    cls, patches = student(micro.global_crops(), None, micro.global_randomness())
    local, _ = student(micro.local_crops(), None, micro.local_randomness())
    views = log_probabilities(torch.cat([cls, local]), student.dino_head, loss).view(5, 16, -1)
    targets = dino_targets.view(2, 16, -1)
    pairs = [(view, other) for view in range(5) for other in range(2) if view != other]
    dino = -sum((targets[t] * views[s]).sum(-1).mean() for s, t in pairs) / len(pairs)
    of_patches = -(ibot_targets * log_probabilities(patches[masks], student.ibot_head, loss)).sum(1)
    counts = masks.sum(dim=1, keepdim=True).expand_as(masks)[masks]
    ibot = (of_patches / counts).sum() / masks.any(dim=1).sum()
    (dino + loss.ibot_weight * ibot).backward()
    expected = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert terms["ibot"] == pytest.approx(ibot.item(), rel=1e-10)
    assert terms["dino"] == pytest.approx(dino.item(), rel=1e-10)
    found = gradient[gradient != 0]
    expected = torch.cat([part.flatten() for part in expected])
    assert relative_error(found, expected[expected != 0]) < 1e-8


def targets_of_rows(tokens, head, temperature):
    """Sinkhorn-Knopp targets of the published algorithm."""
    return plain_sinkhorn(head(tokens) @ head.prototypes().T / temperature, 3)


def log_probabilities(tokens, head, loss):
    logits = head(tokens) @ head.prototypes().T / loss.student_temperature
    return torch.log_softmax(logits, dim=-1)


def test_a_smaller_model_learns_from_it_and_resumes_exactly(large, films, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    flags = ("--steps", 4, "--set", "checkpoint.every=1", "checkpoint.keep=9")
    for out in (whole, cut):
        assert distill(large, films, out, *flags) == 0
    state = weights(whole, 4)
    assert state[".student.dino_head.last_layer"].shape[0] == 43
    assert state[".student.backbone.vit.norm.weight"].shape == (32,)
    assert not any("distilled" in name for name in state)  # it is not copied into checkpoints
    for step in (3, 4):
        (cut / "checkpoints" / f"step-{step:08d}.pt").unlink()
    assert main(["pretrain", "--out", str(cut), "--resume"]) == 0
    assert len(metrics(cut)) == 4
    assert losses(cut) == losses(whole)


def test_what_is_refused(large, films, tmp_path, capsys):
    network("dinov3").save_pretrained(tmp_path / "m")
    capsys.readouterr()  # transformers' bar
    for teacher, flags, pattern in (
        (tmp_path / "m", (), r"no heads to make targets .* optim.freeze_backbone=N"),
        (large, ("--prototypes", 20), "has prototypes 43, the student 20"),
        (large, ("--set", "model.patch_size=16"), "has patch size 8, the student 16"),
    ):
        arguments = ["--steps", "1"]
        settings = [s for s in tiny_settings() if not s.startswith(("head.", "model.patch"))]
        command = ["pretrain", "--data", films, "--out", tmp_path / "run", *FLAGS, *arguments]
        patch = [] if "model.patch_size=16" in flags else ["--set", "model.patch_size=8"]
        command += [*settings, f"teacher.model={teacher}", *patch, *flags]
        assert main([str(argument) for argument in command]) == 2
        error = capsys.readouterr().err.strip()
        assert re.search(pattern, error), error
        assert "\n" not in error
        assert not (tmp_path / "run").exists()


def test_another_teacher_on_resume_is_refused(large, films, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(large, tmp_path / "large")
    assert distill(copy, films, tmp_path / "run", "--steps", 1) == 0
    path = copy / "checkpoints" / "step-00000002.pt"
    state = torch.load(path, weights_only=True)
    state["teacher"]["dino_head.last_layer"] += 1
    torch.save(state, path)
    path.with_suffix(".sha256").unlink()
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "is not the model that" in capsys.readouterr().err
