import pytest
import torch

from dino_x.config.resolve import Facts, resolve
from dino_x.errors import UserError
from dino_x.model.teacher import build_student
from dino_x.training.optimizer import (
    build_optimizer,
    clip_gradients,
    decays,
    lr_multiplier,
    set_values,
)
from dino_x.training.schedules import values_at
from tests.conftest import TINY


@pytest.fixture
def options():
    return resolve(TINY | {"train.steps": 100, "optim.freeze_last_layer": 3}, Facts(40)).options


def test_multipliers_fall_by_layer(options):
    optim = options.optim
    vit = "backbone.vit"
    expected = {
        "dino_head.mlp.0.weight": 1.0,
        "dino_head.last_layer": 1.0,
        f"{vit}.norm.weight": 1.0,
        f"{vit}.model.layer.1.mlp.up_proj.weight": 0.9,
        f"{vit}.model.layer.0.norm1.bias": 0.81,
        f"{vit}.embeddings.cls_token": 0.729,
        f"{vit}.embeddings.patch_embeddings.weight": 0.729 * 0.2,
    }
    names = dict(build_student(options).named_parameters())
    for name, multiplier in expected.items():
        assert name in names
        assert lr_multiplier(name, 2, optim) == pytest.approx(multiplier), name


def test_every_parameter_is_in_one_group_with_the_right_decay(options):
    student = build_student(options)
    optimizer = build_optimizer(student, options.optim)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(groups)
    for name, parameter in student.named_parameters():
        group = groups[id(parameter)]
        assert group["decays"] == decays(name, parameter), name
        small = name.endswith(("bias", "_token", "_tokens", "lambda1")) or "norm" in name
        assert group["decays"] is not small, name


def test_a_parameter_of_no_numbers_is_not_trained(options):
    """Without registers there is one; FSDP cannot sum its gradient."""
    without = resolve(TINY | {"model.registers": 0, "train.steps": 100}, Facts(40)).options
    student = build_student(without)
    set_values(build_optimizer(student, without.optim), student, values_at(5, without))
    still = [name for name, weight in student.named_parameters() if not weight.requires_grad]
    assert still == ["backbone.vit.embeddings.register_tokens"]


def test_values_reach_the_groups_and_freeze_the_prototypes(options):
    student = build_student(options)
    optimizer = build_optimizer(student, options.optim)
    before = student.ibot_head.last_layer.clone()
    for step in range(5):
        values = values_at(step, options)
        set_values(optimizer, student, values)
        for group in optimizer.param_groups:
            assert group["lr"] == values.lr * group["lr_multiplier"]
            assert group["weight_decay"] == values.weight_decay * group["decays"]
        optimizer.zero_grad(set_to_none=True)
        sum(p.square().sum() for p in student.parameters() if p.requires_grad).backward()
        optimizer.step()
        assert torch.equal(student.ibot_head.last_layer, before) == (step < 3)


def with_gradients(student, sizes):
    """Give the backbone and the two heads gradients of these norms."""
    parts = (student.backbone, student.dino_head, student.ibot_head)
    for part, size in zip(parts, sizes, strict=True):
        weights = list(part.parameters())
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        norm = norm_of(part)
        for weight in weights:
            weight.grad *= size / norm
    return parts


def norm_of(part):
    return float(torch.cat([w.grad.flatten() for w in part.parameters()]).norm())


def test_the_backbone_and_each_head_are_clipped_by_their_own_norm(options):
    """DINOv3, optim.clip_grad 3.0: of each part. 956 and 0.09 are norms of its first step."""
    assert (options.optim.clip, options.optim.clip_scope) == (3.0, "part")
    student = build_student(options)
    parts = with_gradients(student, (956.0, 0.09, 5.0))
    norm = clip_gradients(student, options.optim)
    assert norm == pytest.approx((956.0**2 + 0.09**2 + 5.0**2) ** 0.5, rel=1e-4)
    assert [norm_of(part) for part in parts] == pytest.approx([3.0, 0.09, 3.0], rel=1e-4)


def test_joint_clipping_takes_the_norm_of_all_together(options):
    joint = options.optim.model_copy(update={"clip_scope": "joint"})
    student = build_student(options)
    parts = with_gradients(student, (956.0, 0.09, 5.0))
    norm = clip_gradients(student, joint)
    scale = 3.0 / norm
    expected = [956.0 * scale, 0.09 * scale, 5.0 * scale]
    assert [norm_of(part) for part in parts] == pytest.approx(expected, rel=1e-4)


def test_a_clip_of_0_changes_nothing_and_frozen_parts_have_no_norm(options):
    off = options.optim.model_copy(update={"clip": 0.0})
    student = build_student(options)
    parts = with_gradients(student, (956.0, 0.09, 5.0))
    student.backbone.zero_grad(set_to_none=True)
    assert clip_gradients(student, off) == pytest.approx((0.09**2 + 5.0**2) ** 0.5, rel=1e-4)
    assert [norm_of(part) for part in parts[1:]] == pytest.approx([0.09, 5.0], rel=1e-4)


def test_the_small_preset_keeps_the_joint_norm_that_it_was_measured_with():
    assert resolve({"preset": "small"}, Facts(40)).options.optim.clip_scope == "joint"
    with pytest.raises(UserError, match="optim.clip_scope is one of part, joint; got 'each'"):
        resolve({"optim.clip_scope": "each"}, Facts(40))
