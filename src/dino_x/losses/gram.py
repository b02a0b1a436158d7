"""Gram anchoring: patch features keep the similarities they had to each other earlier in training.

Shape letters: B images (or crops), N patches, D features.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dino_x.losses.checks import check_finite, compute_dtype
from dino_x.losses.memory import working_bytes

LIVE = 3  # matrices of a tile in memory at once: the student's, the teacher's, their difference


def gram_loss(
    student_BND: Tensor, teacher_BND: Tensor, level: Literal["image"] = "image"
) -> Tensor:
    """Mean squared difference of two matrices of cosine similarities between patches.

    ``mean over b of |S_b S_b^T - T_b T_b^T|^2 / N^2`` with rows of S and T of norm 1. It is a mean
    over images, so that over an effective batch it is the mean of its micro-batches. Memory grows
    with B * N * D: the [N, N] matrices are made a tile at a time, and the gradient with them.

    Args:
        student_BND: patch features, any scale; the gradient is for these.
        teacher_BND: of the same images and patches; D may be another.
        level: "image". Similarities between patches of different images ("batch") are refused: they
            depend on which images share a micro-batch.

    Returns: a scalar, float64 if any input is, else float32; between 0 and 4.

    Raises: ValueError for other shapes or another level; NotFiniteError for NaN or infinity.

    Source: Simeoni et al. 2025 (DINOv3), section 4.2, divided by N^2.

    >>> features = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    >>> round(float(gram_loss(features, features.sum(dim=1, keepdim=True).expand(1, 2, 2))), 4)
    0.5
    """
    if level != "image":
        raise ValueError(
            f"level is {level!r}; expected 'image': at batch level the loss is not a sum over"
            " images, so it would depend on the micro-batch"
        )
    for name, features in (("student_BND", student_BND), ("teacher_BND", teacher_BND)):
        if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
            raise ValueError(
                f"{name} is {features.dtype} of shape {tuple(features.shape)}; expected floating"
                " point [B, N, D], none of them 0"
            )
    if student_BND.shape[:2] != teacher_BND.shape[:2]:
        raise ValueError(
            f"student_BND has {tuple(student_BND.shape[:2])} images and patches, teacher_BND"
            f" {tuple(teacher_BND.shape[:2])}; expected the same"
        )
    check_finite("student_BND", student_BND)
    check_finite("teacher_BND", teacher_BND)
    dtype = compute_dtype(student_BND, teacher_BND)
    with torch.autocast(student_BND.device.type, enabled=False):
        student = F.normalize(student_BND.to(dtype), dim=-1)
        teacher = F.normalize(teacher_BND.detach().to(dtype), dim=-1)
        return _GramDistance.apply(student, teacher)


class _GramDistance(torch.autograd.Function):
    """The loss of normalised features, with its gradient made in the same pass over tiles.

    With ``E = S S^T - T T^T`` the gradient of ``|E|^2`` is ``4 E S``, for E is symmetric.
    """

    @staticmethod
    def forward(ctx: Any, student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
        images, patches, _ = student_BND.shape
        scale = 1 / (images * patches**2)
        total = student_BND.new_zeros(())
        gradient_BND = torch.empty_like(student_BND)
        for some, rows in tiles(images, patches, student_BND):
            student, teacher = student_BND[some], teacher_BND[some]
            error = student[:, rows] @ student.mT
            error -= teacher[:, rows] @ teacher.mT
            total += error.square().sum()
            gradient_BND[some, rows] = error @ student
        ctx.save_for_backward(gradient_BND.mul_(4 * scale))
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient_BND,) = ctx.saved_tensors
        return gradient_BND * upstream, None


def tiles(images: int, patches: int, like: Tensor) -> list[tuple[slice, slice]]:
    """(images, rows of their matrices) that fit in working memory; several images, or few rows."""
    room = max(1, working_bytes(like.device) // (LIVE * like.element_size()))
    rows = max(1, min(patches, room // patches))
    some = max(1, room // patches**2) if rows == patches else 1
    return [
        (slice(image, image + some), slice(row, row + rows))
        for image in range(0, images, some)
        for row in range(0, patches, rows)
    ]
