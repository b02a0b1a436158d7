"""What the passes of the exact step hand to each other, and what comes of a step.

b: images of a micro-batch, V: global views, D: bottleneck, F: features of the backbone,
K: prototypes, m: masked patches of a micro-batch, R: rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from dino_x.exact.centering import CenteringState


@dataclass(frozen=True)
class Targets:
    """What pass 1 keeps of the teacher: bottlenecks and one bias a head, never logits.

    Attributes:
        cls_VbD: CLS bottlenecks of each micro-batch, in order.
        patches_mD: bottlenecks of the masked patches of each micro-batch.
        dino_bias_K, ibot_bias_K: what centers the targets of each head.
        next_state: of the centering, after this step.
    """

    cls_VbD: list[Tensor]
    patches_mD: list[Tensor]
    dino_bias_K: Tensor
    ibot_bias_K: Tensor
    next_state: CenteringState


class HeadOutputs(NamedTuple):
    """Bottlenecks of the student's head, and the prototypes that they are compared with."""

    rows_RD: Tensor
    student_KD: Tensor
    teacher_KD: Tensor


class Outputs(NamedTuple):
    """What the networks make of a micro-batch in pass 3, before any loss is computed.

    Attributes:
        global_RF: the student's CLS tokens of the global crops.
        patches: its patch tokens: all, [R, N, F], with Gram anchoring; else those masked, [m, F].
        dino, ibot: of its heads; no ibot if no patch of the effective batch is masked.
        gram_RNF: the Gram teacher's patches.
    """

    global_RF: Tensor
    patches: Tensor
    dino: HeadOutputs
    ibot: HeadOutputs | None
    gram_RNF: Tensor | None


@dataclass(frozen=True)
class StepResult:
    """What a step found; its gradient is in the student's ``.grad``.

    Attributes:
        terms: each loss term, and the loss, of the effective batch.
        next_state: of the centering, after this step.
        probed: what the probe gathered, if there is one.
    """

    terms: dict[str, float]
    next_state: CenteringState
    probed: Any = None


@dataclass(frozen=True)
class Spanning:
    """What pass 2 leaves for pass 3; all empty if no statistic spans micro-batches.

    Attributes:
        values: the statistic, by the term's name.
        gradients_VbF: its gradient with respect to the CLS features of each micro-batch.
        first: the student's tokens of the first micro-batch with their graph, so that pass 3 does
            not make them again; None if it has to.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    gradients_VbF: Sequence[Tensor] = ()
    first: tuple[Tensor, Tensor] | None = None
