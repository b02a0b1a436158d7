"""The loss over prototypes: a linear layer and a soft cross-entropy in one operation.

Shape letters: R student rows, T teacher rows, D features, K prototypes, P pairs.
"""

import torch
from torch import Tensor

from dino_x.losses.checks import (
    check_at_least,
    check_choice,
    check_finite,
    check_matrix,
    check_pairs,
    check_positive,
    check_same_width,
    check_vector,
    compute_dtype,
)
from dino_x.losses.fused_cross_entropy import (
    FusedCrossEntropy,
    Gradients,
    Problem,
    loss_and_gradients,
)
from dino_x.losses.transfer import there


def view_pairs(
    images: int, student_views: int, teacher_views: int, *, same_view: bool = False
) -> Tensor:
    """Every (student row, teacher row) of the same image, for rows ordered view by view.

    Row ``view * images + image`` holds a view of an image, as after concatenating the crops view
    by view; the student's first ``teacher_views`` views are the teacher's.

    Args:
        images: images in the batch, at least 1.
        student_views: views of an image that the student sees, at least ``teacher_views``.
        teacher_views: views of an image that the teacher sees, at least 1.
        same_view: whether a view is also compared with itself.

    Returns: int64 [P, 2] on the CPU, image by image, so that the fused loss computes the targets
        of an image once for all of its student views.

    Raises:
        ValueError: if a count is too small, or if there is no pair (a single view, not compared
            with itself).

    >>> view_pairs(images=2, student_views=3, teacher_views=2)[:4].tolist()  # of image 0
    [[0, 2], [2, 0], [4, 0], [4, 2]]
    """
    check_at_least("images", images, 1)
    check_at_least("teacher_views", teacher_views, 1)
    check_at_least("student_views", student_views, teacher_views)
    if student_views == 1 and not same_view:
        raise ValueError("student_views is 1 and same_view is False; expected 2 views or more")
    views_Q2 = torch.tensor(
        [
            (student, teacher)
            for student in range(student_views)
            for teacher in range(teacher_views)
            if same_view or student != teacher
        ]
    )
    return (views_Q2 * images + torch.arange(images)[:, None, None]).flatten(0, 1)


# Chunks depend on the values of the pairs, which a compiled graph does not know; compiled code
# calls this as it is.
@torch.compiler.disable
def prototype_cross_entropy(
    student_bottlenecks_RD: Tensor,
    student_prototypes_KD: Tensor,
    teacher_bottlenecks_TD: Tensor,
    teacher_prototypes_KD: Tensor,
    bias_K: Tensor,
    pairs_P2: Tensor,
    weights_P: Tensor | None = None,
    *,
    student_temperature: float,
    teacher_temperature: float,
    implementation: str = "fused",
) -> Tensor:
    """Cross-entropy of the student's prototypes against the teacher's, summed over pairs.

    The loss is ``sum_p weights[p] * CE(target[teacher of p], log_softmax(student of p))`` with

        target = softmax(<teacher bottleneck, prototypes> / teacher_temperature + bias)
        student = <student bottleneck, prototypes> / student_temperature

    The bias carries the centering: ``sinkhorn_bias(...)`` or ``-center / teacher_temperature``.
    DINO's loss over views and iBOT's over masked patches are both this, with their own pairs.

    Args:
        student_bottlenecks_RD: student rows, [R, D].
        student_prototypes_KD: weight of the student's last layer, [K, D].
        teacher_bottlenecks_TD: teacher rows, [T, D].
        teacher_prototypes_KD: weight of the teacher's last layer, [K, D].
        bias_K: added to the teacher's scaled logits, [K].
        pairs_P2: int64 (student row, teacher row), [P, 2]; keep them on the CPU, where they are
            read, and keep the pairs of neighbouring rows together: see ``view_pairs``.
        weights_P: weight of each pair, [P]; ``None`` gives each 1 / P.
        student_temperature: above 0; 0.1 in DINO.
        teacher_temperature: above 0; 0.04 to 0.07 in DINO.
        implementation: "fused" never holds more than a chunk of rows times K; "reference"
            materialises everything and lets autograd differentiate. They agree to rounding.

    Returns: scalar, float32, or float64 if any floating-point argument is. Half-precision inputs
        are multiplied and summed in float32, under autocast too. Gradients flow to the student's
        bottlenecks and prototypes, each only if it requires them, and through "fused" only once.

    Raises:
        ValueError: naming the argument, its value and what was expected, before any work.

    Memory beyond the inputs and their gradients, "fused": 24 MiB (CUDA: a 64th of the device), or
        128 rows of K if these need more; and copies of inputs that are not in the result's dtype.

    Source: Caron et al. 2021, equation 3; Zhou et al. 2022, equation 2. Gradients in the forward
        pass, chunk by chunk, as for language models in Wijmans et al. 2025.

    >>> rows, prototypes = torch.eye(2), torch.eye(2)
    >>> loss = prototype_cross_entropy(
    ...     rows, prototypes, rows, prototypes, torch.zeros(2), torch.tensor([[0, 0], [1, 1]]),
    ...     student_temperature=1.0, teacher_temperature=1.0)
    >>> round(float(loss), 4)  # the entropy of (e, 1) / (e + 1)
    0.5822
    """
    check_choice("implementation", implementation, ("fused", "reference"))
    check_positive("student_temperature", student_temperature)
    check_positive("teacher_temperature", teacher_temperature)
    for role, rows, prototypes in (
        ("student", student_bottlenecks_RD, student_prototypes_KD),
        ("teacher", teacher_bottlenecks_TD, teacher_prototypes_KD),
    ):
        names = f"{role}_bottlenecks_{'R' if role == 'student' else 'T'}D", f"{role}_prototypes_KD"
        check_matrix(names[1], prototypes, rows="prototype")
        check_matrix(names[0], rows, rows=f"{role} row")
        check_same_width(names[0], rows, names[1], prototypes)
        check_finite(names[0], rows)
    if len(teacher_prototypes_KD) != len(student_prototypes_KD):
        raise ValueError(
            f"teacher_prototypes_KD has {len(teacher_prototypes_KD)} prototypes; expected "
            f"{len(student_prototypes_KD)}, as student_prototypes_KD has"
        )
    check_vector("bias_K", bias_K, len(student_prototypes_KD), one_per="prototype")
    if pairs_P2.device.type != "cpu":  # where chunks are planned
        pairs_P2 = pairs_P2.cpu()
    check_pairs(pairs_P2, len(student_bottlenecks_RD), len(teacher_bottlenecks_TD))
    if weights_P is None:
        weights_P = bias_K.new_full((len(pairs_P2),), 1 / len(pairs_P2))
    weights_P = there(weights_P.detach(), student_bottlenecks_RD.device)
    check_vector("weights_P", weights_P, len(pairs_P2), one_per="pair")

    dtype = compute_dtype(
        student_bottlenecks_RD,
        student_prototypes_KD,
        teacher_bottlenecks_TD,
        teacher_prototypes_KD,
        bias_K,
        weights_P,
    )
    with torch.autocast(student_bottlenecks_RD.device.type, enabled=False):
        problem = Problem(
            student_bottlenecks_RD.to(dtype),
            student_prototypes_KD.to(dtype),
            teacher_bottlenecks_TD.detach().to(dtype),
            teacher_prototypes_KD.detach().to(dtype),
            bias_K.detach().to(dtype),
            pairs_P2,
            weights_P.to(dtype),
            student_temperature,
            teacher_temperature,
        )
        if implementation == "reference":
            return _reference(problem)
        if not torch.is_grad_enabled():
            return loss_and_gradients(problem, Gradients(None, None))
        return FusedCrossEntropy.apply(problem.student_RD, problem.student_prototypes_KD, problem)


def _reference(problem: Problem) -> Tensor:
    """The loss as it is written, everything in memory; autograd does the rest."""
    student_P, teacher_P = problem.pairs_P2.unbind(1)
    scaled_TD = problem.teacher_TD / problem.teacher_temperature
    scaled_RD = problem.student_RD / problem.student_temperature
    target_TK = (scaled_TD @ problem.teacher_prototypes_KD.T + problem.bias_K).softmax(dim=1)
    log_student_RK = (scaled_RD @ problem.student_prototypes_KD.T).log_softmax(dim=1)
    entropy_P = -(_rows(target_TK, teacher_P) * _rows(log_student_RK, student_P)).sum(dim=1)
    return (problem.weights_P * entropy_P).sum()


def _rows(matrix: Tensor, index_P: Tensor) -> Tensor:
    """``matrix[index]`` without a copy if that is the matrix itself, as for patches."""
    if index_P.numpy().tolist() == list(range(len(matrix))):
        return matrix
    return matrix[there(index_P, matrix.device)]
