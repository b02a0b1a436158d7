import pytest
import torch

from dino_x.config.options import HeadOptions
from dino_x.config.resolve import Facts, resolve
from dino_x.exact import update_teacher
from dino_x.model.head import Head
from dino_x.model.teacher import build_student, build_teacher
from tests.conftest import TINY


def test_bottlenecks_have_norm_one_and_half_precision_does_not_blunt_it():
    head = Head(12, HeadOptions(prototypes=7, hidden=16, bottleneck=5))
    tokens = torch.randn(9, 12)
    assert head(tokens).shape == (9, 5)
    torch.testing.assert_close(head(tokens).norm(dim=1), torch.ones(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = head(tokens)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(9), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_layers_and_their_initial_scale(layers):
    torch.manual_seed(0)
    options = {"prototypes": 7, "hidden": 300, "bottleneck": 200, "layers": layers}
    linear = [m for m in Head(400, HeadOptions(**options)).mlp if hasattr(m, "weight")]
    assert len(linear) == layers
    assert float(linear[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    head = Head(400, HeadOptions(**options, init="fan_in"))
    assert float(head.mlp[0].weight.detach().std()) == pytest.approx(0.05, rel=0.05)
    assert float(head.last_layer.detach().norm(dim=1).mean()) == pytest.approx(1, rel=0.05)


def test_prototypes_are_on_the_sphere_only_if_asked():
    head = Head(4, HeadOptions(prototypes=6, hidden=8, bottleneck=5))
    assert head.prototypes() is head.last_layer
    head = Head(4, HeadOptions(prototypes=6, hidden=8, bottleneck=5, normalize_prototypes=True))
    torch.testing.assert_close(head.prototypes().norm(dim=1), torch.ones(6))


def test_the_teacher_follows_the_student_and_is_another_object():
    options = resolve(TINY, Facts(40)).options
    student = build_student(options)
    teacher = build_teacher(student)
    assert not any(weight.requires_grad for weight in teacher.parameters())
    before = [weight.clone() for weight in teacher.parameters()]
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    for old, now in zip(before, teacher.parameters(), strict=True):
        assert torch.equal(old, now)
    update_teacher(teacher, student, 0.9)
    for old, now in zip(before, teacher.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.1)


def test_the_two_heads_start_apart():
    student = build_student(resolve(TINY, Facts(40)).options)
    assert not torch.equal(student.dino_head.last_layer, student.ibot_head.last_layer)
