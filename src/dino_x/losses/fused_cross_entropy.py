"""The fast path of the loss over prototypes: loss and gradients in one pass over chunks.

With ``p`` a teacher's target, ``l`` a student's logits and ``w`` the weight of their pair,

    loss = sum_pairs w (logsumexp(l) - <p, l>)        d loss / d l = sum_pairs w (softmax(l) - p)

so that a chunk of rows gives its share of the loss and of both gradients while its logits are
in memory, and nothing with K columns outlives the chunk.

Shape letters: R student rows, T teacher rows, D features, K prototypes, P pairs,
C student rows of a chunk, U teacher rows of a chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dino_x.losses.memory import working_bytes
from dino_x.losses.pair_chunks import Chunk, plan_chunks

LEAST_ROWS = 64  # of a chunk: fewer wait for the prototypes to be read, 1.2 to 1.7 times as long
MOST_ROWS = 2048  # few prototypes would allow more, but the weights are C x U


@dataclass(frozen=True)
class Problem:
    """What the loss is computed from, all floating-point tensors in one dtype."""

    student_RD: Tensor
    student_prototypes_KD: Tensor
    teacher_TD: Tensor
    teacher_prototypes_KD: Tensor
    bias_K: Tensor
    pairs_P2: Tensor
    weights_P: Tensor
    student_temperature: float
    teacher_temperature: float


@dataclass
class Gradients:
    """Where the chunks add up; ``None`` where no gradient is wanted and its work is skipped."""

    student_RD: Tensor | None
    prototypes_KD: Tensor | None


class FusedCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss and hands them over in ``backward``."""

    @staticmethod
    def forward(
        ctx: Any, student_RD: Tensor, student_prototypes_KD: Tensor, problem: Problem
    ) -> Tensor:
        """The loss; gradients wait in ``ctx`` for what is asked of them."""
        wants_student, wants_prototypes, _ = ctx.needs_input_grad
        gradients = Gradients(
            torch.zeros_like(problem.student_RD) if wants_student else None,
            torch.zeros_like(problem.student_prototypes_KD) if wants_prototypes else None,
        )
        loss = loss_and_gradients(problem, gradients)
        ctx.gradients = gradients
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients, scaled in place and given away: a copy would be one more [K, D]."""
        if ctx.gradients is None:
            raise RuntimeError(
                "prototype_cross_entropy was differentiated twice; add the losses up before one "
                "backward, or use implementation='reference'"
            )
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in (gradients.student_RD, gradients.prototypes_KD):
            if gradient is not None:
                gradient.mul_(grad_output)
        return gradients.student_RD, gradients.prototypes_KD, None


def loss_and_gradients(problem: Problem, gradients: Gradients) -> Tensor:
    """The loss, adding to the gradients that are wanted."""
    prototypes = len(problem.student_prototypes_KD)
    student_RD = problem.student_RD
    row_bytes = prototypes * student_RD.element_size()
    rows_at_once = max(LEAST_ROWS, working_bytes(student_RD.device) // row_bytes)
    rows_at_once = min(rows_at_once, MOST_ROWS, len(student_RD) + len(problem.teacher_TD))
    buffer = student_RD.new_empty(rows_at_once, prototypes)
    loss = student_RD.new_zeros(())
    for chunk in plan_chunks(problem.pairs_P2, rows_at_once):
        loss += _chunk_loss(problem, chunk, buffer, gradients)
    return loss


def _chunk_loss(problem: Problem, chunk: Chunk, buffer: Tensor, gradients: Gradients) -> Tensor:
    """One chunk's share of the loss; logits, probabilities and gradients share two buffers."""
    device = buffer.device
    student_C = torch.tensor(list(chunk.student_rows), device=device)
    teacher_U = torch.tensor(list(chunk.teacher_rows), device=device)
    students = len(student_C)
    blocks = chunk.blocks()

    # exp(target logits), not yet divided by their sum: the pair weights take the division over.
    target_UK = buffer[students : students + len(teacher_U)]
    scaled_UD = problem.teacher_TD[teacher_U] / problem.teacher_temperature
    torch.addmm(problem.bias_K, scaled_UD, problem.teacher_prototypes_KD.T, out=target_UK)
    target_UK.sub_(target_UK.amax(dim=1, keepdim=True)).exp_()
    pair_weights_CU = chunk.weights_CU(problem.weights_P)
    row_weights_C = pair_weights_CU.sum(dim=1)
    pair_weights_CU /= target_UK.sum(dim=1)

    # A target sums to 1, so taking the row's maximum off the logits leaves the loss as it is.
    logits_CK = buffer[:students]
    scaled_CD = problem.student_RD[student_C] / problem.student_temperature
    torch.mm(scaled_CD, problem.student_prototypes_KD.T, out=logits_CK)
    logits_CK.sub_(logits_CK.amax(dim=1, keepdim=True))
    loss = buffer.new_zeros(())
    for rows, teachers in blocks:
        expected = logits_CK[rows] @ target_UK[teachers].T
        loss -= (pair_weights_CU[rows, teachers] * expected).sum()
    exp_CK = logits_CK.exp_()
    sums_C = exp_CK.sum(dim=1)
    loss += (row_weights_C * sums_C.log()).sum()
    if gradients.student_RD is None and gradients.prototypes_KD is None:
        return loss

    gradient_CK = exp_CK.mul_((row_weights_C / sums_C)[:, None])
    for rows, teachers in blocks:
        gradient_CK[rows].addmm_(pair_weights_CU[rows, teachers], target_UK[teachers], alpha=-1)
    if gradients.student_RD is not None:
        rows_CD = (gradient_CK @ problem.student_prototypes_KD).div_(problem.student_temperature)
        gradients.student_RD.index_add_(0, student_C, rows_CD)
    if gradients.prototypes_KD is not None:
        gradients.prototypes_KD.addmm_(gradient_CK.T, scaled_CD)
    return loss
