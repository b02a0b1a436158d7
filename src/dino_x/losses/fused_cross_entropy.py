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

LEAST_ROWS = 128  # of a chunk: with 64 the prototypes are read so often that it takes 1.1 x as long
MOST_ROWS = 2048  # few prototypes would allow more, but the weights are C x U


@dataclass(frozen=True)
class Problem:
    """What the loss is computed from, all floating-point tensors in one dtype; pairs on the CPU."""

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
    started: bool = False  # whether prototypes_KD holds anything yet: filling it with 0 takes time

    def add_to_prototypes(self, gradient_CK: Tensor, rows_CD: Tensor) -> None:
        """Add what a chunk gives."""
        if self.prototypes_KD is None:
            return
        if self.started:
            self.prototypes_KD.addmm_(gradient_CK.T, rows_CD)
        else:
            torch.mm(gradient_CK.T, rows_CD, out=self.prototypes_KD)
        self.started = True


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
            torch.empty_like(problem.student_prototypes_KD) if wants_prototypes else None,
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
    places = chunk.there(buffer.device)
    student_C, teacher_U = places.student_C, places.teacher_U
    students = len(student_C)
    blocks = chunk.blocks()

    target_UK = buffer[students : students + len(teacher_U)]
    scaled_UD = problem.teacher_TD[teacher_U] / problem.teacher_temperature
    torch.addmm(problem.bias_K, scaled_UD, problem.teacher_prototypes_KD.T, out=target_UK)
    torch.softmax(target_UK, dim=1, out=target_UK)

    log_CK = buffer[:students]
    scaled_CD = problem.student_RD[student_C] / problem.student_temperature
    torch.mm(scaled_CD, problem.student_prototypes_KD.T, out=log_CK)
    torch.log_softmax(log_CK, dim=1, out=log_CK)
    pair_weights_CU = places.weights_CU(problem.weights_P)
    loss = buffer.new_zeros(())
    for rows, teachers in blocks:
        log_likelihood = log_CK[rows] @ target_UK[teachers].T
        loss -= (pair_weights_CU[rows, teachers] * log_likelihood).sum()
    if gradients.student_RD is None and gradients.prototypes_KD is None:
        return loss

    # Row by row (softmax - its targets' mean), times the row's weight where rows are few numbers.
    row_weights_C = pair_weights_CU.sum(dim=1)
    means_CU = pair_weights_CU / torch.where(row_weights_C == 0, 1, row_weights_C)[:, None]
    gradient_CK = log_CK.exp_()
    for rows, teachers in blocks:
        gradient_CK[rows].addmm_(means_CU[rows, teachers], target_UK[teachers], alpha=-1)
    row_weights_C1 = row_weights_C[:, None]
    if gradients.student_RD is not None:
        rows_CD = gradient_CK @ problem.student_prototypes_KD
        rows_CD *= row_weights_C1 / problem.student_temperature
        gradients.student_RD.index_add_(0, student_C, rows_CD)
    gradients.add_to_prototypes(gradient_CK, scaled_CD * row_weights_C1)
    return loss
