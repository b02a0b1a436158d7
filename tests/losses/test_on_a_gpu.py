"""The losses on a GPU: value and gradient are those on the CPU, which other tests check."""

import pytest
import torch

from dino_x.losses import (
    gram_loss,
    koleo,
    prototype_cross_entropy,
    random_directions,
    sigreg,
    sinkhorn_bias,
    view_pairs,
)

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-4)]


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradients(device, dtype, loss, *inputs):
    """The loss of copies of the inputs on a device, and its gradient for each of them."""
    leaves = [one.to(device, dtype).requires_grad_() for one in inputs]
    value = loss(*leaves)
    value.backward()
    found = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [one.detach().cpu().double() for one in (value, *found)]


def check(loss, *inputs):
    for dtype, tolerance in PRECISIONS:
        expected = value_and_gradients(CPU, torch.float64, loss, *inputs)
        found = value_and_gradients(torch.device("cuda", 0), dtype, loss, *inputs)
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("implementation", ["fused", "reference"])
@pytest.mark.parametrize(("images", "prototypes", "dim"), [(1, 7, 3), (23, 507, 123)])
def test_prototypes(images, prototypes, dim, implementation):
    pairs_P2 = view_pairs(images, 5, 2)
    weights_P = torch.rand(len(pairs_P2), generator=torch.Generator().manual_seed(1)).double()
    teacher = rows(2 * images, dim, seed=2), rows(prototypes, dim, seed=3), rows(prototypes, seed=4)

    def loss(student_RD, student_KD):
        teacher_TD, teacher_KD, bias_K = (one.to(student_RD) for one in teacher)
        return prototype_cross_entropy(
            student_RD, student_KD, teacher_TD, teacher_KD, bias_K, pairs_P2, weights_P,
            student_temperature=4.0, teacher_temperature=3.0, implementation=implementation,
        )  # fmt: skip

    check(loss, rows(5 * images, dim), rows(prototypes, dim, seed=1))


@pytest.mark.parametrize("relaxation", [0.0, 0.3])
@pytest.mark.parametrize("implementation", ["streaming", "reference"])
def test_sinkhorn(implementation, relaxation):
    bottlenecks_ND, prototypes_KD = rows(63, 17), rows(211, 17, seed=1)
    for dtype, tolerance in PRECISIONS:
        found, expected = (
            sinkhorn_bias(
                bottlenecks_ND.to(device, kind), prototypes_KD.to(device, kind), 2.0,
                relaxation=relaxation, implementation=implementation,
            ).cpu()
            for device, kind in ((torch.device("cuda", 0), dtype), (CPU, torch.float64))
        )  # fmt: skip
        assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("group", [None, 3])
def test_koleo(group):
    check(lambda features_ND: koleo(features_ND, group), rows(33, 13))


def test_sigreg():
    directions_DM = random_directions(13, 40, seed=0)
    check(lambda features_ND: sigreg(features_ND, directions_DM), rows(33, 13))


def test_gram():
    teacher_BND = rows(3, 49, 11, seed=1)
    check(lambda student_BND: gram_loss(student_BND, teacher_BND.to(student_BND)), rows(3, 49, 30))


def test_what_is_not_finite_is_named():
    broken = rows(5, 3).cuda()
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match="is not finite at 1 of 5 indices, the first of them 3"):
        koleo(broken)
