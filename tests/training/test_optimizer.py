import pytest
import torch

from dino_x.config.resolve import Facts, resolve
from dino_x.model.teacher import build_student
from dino_x.training.optimizer import build_optimizer, decays, lr_multiplier, set_values
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
