"""Gram anchoring against the plain formula, on odd shapes, in tiles of any size."""

import pytest
import torch

from dino_x.losses import gram as gram_module
from dino_x.losses import gram_loss
from dino_x.losses.checks import NotFiniteError


def plain_gram(student_BND, teacher_BND):
    """The formula, image by image and patch by patch."""
    total = 0
    for student, teacher in zip(student_BND, teacher_BND, strict=True):
        student = student / student.norm(dim=1, keepdim=True)
        teacher = teacher / teacher.norm(dim=1, keepdim=True)
        total = total + ((student @ student.T - teacher @ teacher.T) ** 2).mean()
    return total / len(student_BND)


def features(images, patches, dim, dtype, seed):
    torch.manual_seed(seed)
    return 3 * torch.randn(images, patches, dim, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("images", "patches", "dim"), [(1, 1, 1), (1, 7, 3), (5, 13, 11), (3, 49, 30), (2, 31, 127)]
)
@pytest.mark.parametrize("memory", [None, 1, 3000])
def test_loss_and_gradient_are_those_of_the_plain_formula(
    images, patches, dim, dtype, tolerance, memory, monkeypatch
):
    if memory:
        monkeypatch.setattr(gram_module, "working_bytes", lambda device: memory)
    student = features(images, patches, dim, dtype, 0).requires_grad_()
    teacher = features(images, patches, dim + 2, dtype, 1)
    loss = gram_loss(student, teacher)
    (gradient,) = torch.autograd.grad(2.5 * loss, student)
    expected = plain_gram(student.double(), teacher.double())
    (expected_gradient,) = torch.autograd.grad(2.5 * expected, student)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance, atol=tolerance)


def test_gradient_is_that_of_finite_differences():
    student = features(2, 5, 3, torch.float64, 0).requires_grad_()
    teacher = features(2, 5, 3, torch.float64, 1)
    assert torch.autograd.gradcheck(lambda s: gram_loss(s, teacher), student)


def test_it_is_the_mean_of_its_micro_batches():
    student, teacher = (features(6, 9, 4, torch.float64, seed) for seed in (0, 1))
    parts = [gram_loss(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), gram_loss(student, teacher), rtol=1e-12,
                               atol=0)  # fmt: skip


def test_scale_and_rotation_of_the_features_do_not_matter():
    student = features(2, 9, 4, torch.float64, 0)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert float(gram_loss(student, 7 * student @ rotation)) < 1e-25


def test_no_tile_is_larger_than_the_memory_allows(monkeypatch):
    monkeypatch.setattr(gram_module, "working_bytes", lambda device: 3 * 8 * 1000)
    for images, patches in ((7, 10), (7, 90), (2, 2000)):
        like = torch.zeros(1, dtype=torch.float64)
        covered = torch.zeros(images, patches)
        for some, rows in gram_module.tiles(images, patches, like):
            covered[some, rows] += 1
            size = covered[some, rows].numel() * patches
            assert size <= max(1000, patches)
        assert (covered == 1).all()


def test_autocast_does_not_round_it():
    student, teacher = (features(2, 30, 16, torch.float32, seed) for seed in (0, 1))
    expected = gram_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram_loss(student, teacher), expected)


def test_what_is_refused():
    one = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match="'batch'; expected 'image'.*micro-batch"):
        gram_loss(one, one, level="batch")
    with pytest.raises(ValueError, match=r"\(2, 3\) images and patches, teacher_BND \(2, 5\)"):
        gram_loss(one, torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match=r"\(2, 3\); expected floating point \[B, N, D\]"):
        gram_loss(torch.ones(2, 3), one)
    with pytest.raises(ValueError, match="none of them 0"):
        gram_loss(one[:0], one[:0])
    with pytest.raises(NotFiniteError, match="teacher_BND is not finite"):
        gram_loss(one, one * float("nan"))
