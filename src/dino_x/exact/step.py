"""One optimizer step's gradient, exact over the effective batch whatever the micro-batch.

    1. targets     the teacher over all micro-batches, of which bottlenecks are kept; a bias a head
    2. statistic   only if KoLeo's group spans micro-batches: the student over the global crops,
                   KoLeo over the group, its gradient for each CLS feature. No graph is kept but
                   that of the first micro-batch, with which pass 3 begins
    3. gradients   the student forward and backward, micro-batch by micro-batch

With several processes each has a share of the images. What passes 1 and 2 look at is gathered from
all of them, and gradients are summed once, after pass 3. The student's randomness is the same in
passes 2 and 3. Nothing here changes the teacher, a center or a weight: gradients are left in
``.grad``, and what the update needs is returned.

B: images of the effective batch, b: of a micro-batch, V: global views, D: bottleneck,
F: features of the backbone, K: prototypes, N: patches, M: masked patches of the effective batch,
m: of a micro-batch, R: rows.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dino_x.exact.batch import GLOBAL_VIEWS, Batch, EffectiveBatch, MicroBatch, PlacedMicroBatch
from dino_x.exact.centering import Centering, CenteringState, HeadState, Sinkhorn
from dino_x.exact.networks import Patches, TokenNetworks
from dino_x.exact.probe import NO_PROBE, StepProbe
from dino_x.exact.processes import Processes
from dino_x.exact.results import HeadOutputs, Outputs, Spanning, StepResult, Targets
from dino_x.exact.statistics import BatchStatistic, KoLeo
from dino_x.losses import transfer
from dino_x.losses.checks import check_finite, checked_late, compute_dtype
from dino_x.losses.gram import gram_loss
from dino_x.losses.prototypes import prototype_cross_entropy, view_pairs


class GramAnchor(Protocol):
    """Gram anchoring in one step: what patch features are held to, and how strongly.

    Attributes:
        weight: of the term in this step.
    """

    @property
    def weight(self) -> float:
        """Weight of the term."""

    def targets(self, micro: Any) -> Tensor:
        """The Gram teacher's patch features of a micro-batch's global crops, [V * b, N, F]."""


def no_fault(where: str, micro: Any) -> None:
    """Let the step run: where a test raises an error instead."""


@dataclass(frozen=True)
class ExactStep:
    """The three passes, for one student and teacher.

    Attributes:
        networks: student and teacher; only the student's ``.grad`` is ever written.
        centering: of the teacher's outputs, ``Sinkhorn`` or ``Softmax``.
        statistic: the term that looks at the whole batch, ``KoLeo`` or ``SIGReg``.
        dino_weight, ibot_weight: of the terms; the loss is their weighted sum.
        local_weight: of a pair with a local crop within the DINO term. The term stays a sum over
            pairs divided by their number, so that 0.5 halves what local crops add to it. DINOv3
            has 1 in pretraining, and 0.5 with Gram anchoring and at high resolution.
        student_temperature: of the student's distributions, 0.1 in DINO.
        implementation: ``fused``, or ``reference``, which holds all logits.
        precision: opens the autocast context of a forward.
        products: opens the context in which tokens are multiplied with prototypes.
        processes: those that share the effective batch.
        fault: called with the place and the micro-batch before each part of the work; a test
            raises an error there.
    """

    networks: TokenNetworks
    centering: Centering = field(default_factory=Sinkhorn)
    statistic: BatchStatistic = field(default_factory=KoLeo)
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    local_weight: float = 1.0
    student_temperature: float = 0.1
    implementation: str = "fused"
    precision: Callable[[], AbstractContextManager] = nullcontext
    products: Callable[[], AbstractContextManager] = nullcontext
    processes: Processes = field(default_factory=Processes)
    fault: Callable[[str, Any], None] = no_fault

    def first_state(self, queue: int = 0) -> CenteringState:
        """The state of the centering before the first step.

        Args:
            queue: past bottlenecks of each head that Sinkhorn-Knopp looks at, too.
        """
        teacher = self.networks.teacher
        states = []
        for head in (teacher.dino_head, teacher.ibot_head):
            prototypes_KD = head.prototypes().detach()
            states.append(HeadState.first(len(prototypes_KD), prototypes_KD[0], queue))
        return CenteringState(*states)

    def gradient(
        self,
        batch: EffectiveBatch | Iterable[MicroBatch],
        state: CenteringState,
        temperature: float,
        gram: GramAnchor | None = None,
        probe: StepProbe = NO_PROBE,
    ) -> StepResult:
        """Add the gradient of the effective batch's loss to ``.grad`` of the student.

        Args:
            batch: this process's share of it.
            state: of the centering, as it is before this step.
            temperature: of the teacher in this step, above 0; 0.04 to 0.07 in DINO.
            gram: Gram anchoring, if it counts in this step.
            probe: looks at rows; it changes nothing.

        Raises: NotFiniteError (a ValueError) where a network returns NaN or infinity.
        """
        self.networks.begin()
        batch = batch if isinstance(batch, EffectiveBatch) else Batch(batch, self.processes)
        totals: dict[str, Tensor] = {}
        with checked_late() as checks:
            targets = self.targets(batch, state, temperature, probe)
            spanning = self.statistic_gradients(batch, gram)
            with self.processes.phase():
                for position, micro in enumerate(self.processes.each(batch.micro_batches())):
                    made = spanning.first if position == 0 else None
                    outputs = self.student_outputs(micro, batch, gram, probe, made)
                    gradient_VbF = None
                    if spanning.gradients_VbF:
                        gradient_VbF = spanning.gradients_VbF[position]
                    with self.processes.alone():
                        self.fault("losses", micro)
                        terms = self.losses(outputs, micro, batch, targets, position, temperature)
                        loss = self.weighted(terms, gram)
                        if gradient_VbF is not None:
                            loss = loss + self.statistic.weight * stand_in(outputs, gradient_VbF)
                    self.processes.backward(loss)
                    add(totals, terms | {"loss": loss})
                checks.raise_if_any()  # read once, so that no micro-batch waits for its device
        self.processes.sum_gradients(self.networks.student)
        values = self.values(totals, spanning.values, gram, targets.dino_bias_K.device)
        probed = probe.finish(targets.dino_bias_K, temperature, self.processes)
        return StepResult(values, targets.next_state, probed)

    @torch.no_grad()
    def targets(
        self,
        batch: EffectiveBatch,
        state: CenteringState,
        temperature: float,
        probe: StepProbe = NO_PROBE,
    ) -> Targets:
        """Pass 1: the teacher's bottlenecks, and the bias of each head over all of them."""
        teacher = self.networks.teacher
        cls_VbD, patches_mD, all_cls_RD, all_patches_MD = self.bottlenecks(batch, probe)
        dino_bias, dino = self.bias(all_cls_RD, teacher.dino_head, state.dino, temperature)
        ibot_bias, ibot = self.bias(all_patches_MD, teacher.ibot_head, state.ibot, temperature)
        return Targets(cls_VbD, patches_mD, dino_bias, ibot_bias, CenteringState(dino, ibot))

    @torch.no_grad()
    def bottlenecks(
        self, batch: EffectiveBatch, probe: StepProbe = NO_PROBE
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The teacher's CLS [V, b, D] and masked-patch [m, D] bottlenecks of each micro-batch.

        And those of all processes, [V * B, D] and [M, D], by view, image and patch: an order that
        depends on neither micro-batches nor processes.
        """
        teacher = self.networks.teacher
        cls_VbD, patches_mD, places_m = [], [], []
        with self.processes.phase():
            for micro in self.processes.each(batch.micro_batches()):
                self.fault("teacher", micro)
                with self.precision():
                    cls_RF, patches_RNF = self.networks.teacher_tokens(micro)
                    cls_RD = teacher.dino_head(cls_RF)
                    patches_mD.append(teacher.ibot_head(masked(patches_RNF, micro)))
                cls_VbD.append(by_view(cls_RD))
                places_m.append(micro.masked_places())
                probe.teacher(micro, cls_RF, patches_RNF, cls_RD)
        all_cls_VBD = self.processes.gather_views(torch.cat(cls_VbD, dim=1))
        all_patches_MD = self.processes.gather_patches(torch.cat(patches_mD), torch.cat(places_m))
        return cls_VbD, patches_mD, all_cls_VBD.flatten(0, 1), all_patches_MD

    def bias(
        self, rows_RD: Tensor, head: Any, state: HeadState, temperature: float
    ) -> tuple[Tensor, HeadState]:
        """The bias f [K] that centers the targets of all rows, and the head's next state."""
        if len(rows_RD) == 0:
            return torch.zeros_like(state.center_K), state
        check_finite("the teacher's bottlenecks", rows_RD)
        ranks = self.processes.ranks
        with self.products():
            return self.centering(rows_RD, head.prototypes(), temperature, state, ranks)

    def statistic_gradients(
        self, batch: EffectiveBatch, gram: GramAnchor | None = None
    ) -> Spanning:
        """Pass 2: the value of a statistic that spans micro-batches, and its gradients."""
        if not self.statistic.weight or not self.statistic.spans(batch.sizes, batch.images):
            return Spanning()
        cls_VbF: list[Tensor] = []
        first = None
        with self.processes.phase():
            for micro in self.processes.each(batch.micro_batches()):
                self.fault("statistic", micro)
                if self.processes.keep_graphs and first is None:
                    first = self.student_tokens(micro, gram)
                    cls_RF = first[0].detach()
                else:
                    with torch.no_grad(), self.precision():
                        cls_RF, _ = self.networks.student_tokens(micro, "none")
                cls_VbF.append(by_view(cls_RF))
        all_cls_VBF = self.processes.gather_views(torch.cat(cls_VbF, dim=1)).requires_grad_()
        value = self.statistic.value(all_cls_VBF, batch.images)
        (gradient_VBF,) = torch.autograd.grad(value, all_cls_VBF)
        own_VbF = self.processes.own_images(gradient_VBF)
        parts = own_VbF.split([part.shape[1] for part in cls_VbF], dim=1)
        return Spanning({self.statistic.name: value.detach()}, parts, first)

    def student_tokens(
        self, micro: PlacedMicroBatch, gram: GramAnchor | None
    ) -> tuple[Tensor, Tensor]:
        """The student's tokens of global crops that the losses look at, with a graph."""
        wanted: Patches = "masked" if gram is None else "all"
        with self.precision():
            return self.networks.student_tokens(micro, wanted)

    def student_outputs(
        self,
        micro: PlacedMicroBatch,
        batch: EffectiveBatch,
        gram: GramAnchor | None = None,
        probe: StepProbe = NO_PROBE,
        made: tuple[Tensor, Tensor] | None = None,
    ) -> Outputs:
        """Pass 3: what the networks make of a micro-batch, with a graph.

        Args:
            micro: the micro-batch.
            batch: the effective batch.
            gram: Gram anchoring.
            probe: looks at rows.
            made: the student's tokens of global crops, if pass 2 has left them.
        """
        self.fault("student", micro)
        student, teacher = self.networks.student, self.networks.teacher
        with self.precision():  # one for all crops: weights are converted once
            global_RF, patches = made or self.student_tokens(micro, gram)
            probe.student(micro, global_RF)
            views_RF = [global_RF]
            local_RF = self.networks.student_local_tokens(micro)
            if local_RF is not None:
                views_RF.append(self.processes.hold_back(local_RF))
            dino = head_outputs(student.dino_head, teacher.dino_head, torch.cat(views_RF))
            ibot = None
            if self.ibot_weight and batch.masked_crops:  # of any process
                rows_mF = patches if gram is None else masked(patches, micro)
                ibot = head_outputs(student.ibot_head, teacher.ibot_head, rows_mF)
            gram_RNF = None if gram is None else gram.targets(micro)
        return Outputs(global_RF, patches, dino, ibot, gram_RNF)

    def losses(
        self,
        outputs: Outputs,
        micro: PlacedMicroBatch,
        batch: EffectiveBatch,
        targets: Targets,
        position: int,
        temperature: float,
    ) -> dict[str, Tensor]:
        """Pass 3: this micro-batch's part of each loss term, with a graph.

        Args:
            outputs: of the networks.
            micro: the micro-batch.
            batch: the effective batch.
            targets: from pass 1.
            position: of the micro-batch among those of this process.
            temperature: of the teacher.
        """
        share = micro.images / batch.images
        with self.precision():
            cls_RD = targets.cls_VbD[position].flatten(0, 1)
            pairs_P2 = pairs_of_views(outputs.dino, micro.images)
            weights_P = self.weights_of_pairs(pairs_P2, micro.images, compute_dtype(cls_RD))
            dino = self.cross_entropy(
                outputs.dino, cls_RD, targets.dino_bias_K, pairs_P2, temperature, weights_P
            )
            terms = {"dino": share * dino}
            if outputs.ibot is not None:
                terms["ibot"] = self.ibot_loss(outputs.ibot, micro, targets, position, temperature)
            if outputs.gram_RNF is not None:
                terms["gram"] = share * gram_loss(outputs.patches, outputs.gram_RNF)
        if self.statistic.weight and not self.statistic.spans(batch.sizes, batch.images):
            value = self.statistic.value(by_view(outputs.global_RF), batch.images)
            terms[self.statistic.name] = share * value
        return terms

    def weights_of_pairs(self, pairs_P2: Tensor, images: int, dtype: torch.dtype) -> Tensor | None:
        """Weight of each pair of the DINO term, [P]; None if all weigh the same."""
        if self.local_weight == 1:
            return None
        is_local_P = pairs_P2[:, 0] >= GLOBAL_VIEWS * images  # rows are ordered view by view
        weights_P = torch.ones(len(pairs_P2), dtype=dtype)
        weights_P[is_local_P] = self.local_weight
        return weights_P / len(pairs_P2)

    def ibot_loss(
        self,
        outputs: HeadOutputs,
        micro: PlacedMicroBatch,
        targets: Targets,
        position: int,
        temperature: float,
    ) -> Tensor:
        """Each masked patch of the student against the same patch of the teacher."""
        if not len(outputs.rows_RD):  # no loss, but a backward as in other micro-batches
            return 0.0 * (outputs.rows_RD.sum() + outputs.student_KD.sum())
        rows_R = torch.arange(len(outputs.rows_RD))
        same_P2 = torch.stack([rows_R, rows_R], dim=1)  # on the CPU, where chunks are planned
        teacher_mD, weights_m = targets.patches_mD[position], micro.masked_weights()
        return self.cross_entropy(
            outputs, teacher_mD, targets.ibot_bias_K, same_P2, temperature, weights_m
        )

    def cross_entropy(
        self,
        outputs: HeadOutputs,
        teacher_RD: Tensor,
        bias_K: Tensor,
        pairs_P2: Tensor,
        temperature: float,
        weights_P: Tensor | None = None,
    ) -> Tensor:
        """The loss over prototypes of pairs of student and teacher rows."""
        with self.products():
            return prototype_cross_entropy(
                outputs.rows_RD,
                outputs.student_KD,
                teacher_RD,
                outputs.teacher_KD,
                bias_K,
                pairs_P2,
                weights_P,
                student_temperature=self.student_temperature,
                teacher_temperature=temperature,
                implementation=self.implementation,
            )

    def weighted(self, terms: dict[str, Tensor], gram: GramAnchor | None = None) -> Tensor:
        """The loss: the weighted sum of the terms there are."""
        weights = {
            "dino": self.dino_weight,
            "ibot": self.ibot_weight,
            self.statistic.name: self.statistic.weight,
            "gram": 0.0 if gram is None else gram.weight,
        }
        return sum((weights[k] * v for k, v in terms.items() if k in weights), torch.tensor(0.0))

    def values(
        self,
        totals: dict[str, Tensor],
        spanning: dict[str, Tensor],
        gram: GramAnchor | None,
        device: torch.device,
    ) -> dict[str, float]:
        """The terms of the effective batch as numbers."""
        names = ("dino", "ibot", self.statistic.name, "gram", "loss")
        terms = self.processes.sum_terms(totals, names, device) | spanning
        if spanning:  # what was backpropagated stands for the statistic, but is not its value
            terms["loss"] = self.weighted(terms, gram)
        found = [name for name in names if name in terms]
        numbers = transfer.read(torch.stack([terms[name].to(device) for name in found]))
        return dict(zip(found, numbers, strict=True))


def by_view(rows_RX: Tensor) -> Tensor:
    """View-major rows as [V, b, X]."""
    return rows_RX.unflatten(0, (GLOBAL_VIEWS, -1))


def masked(patches_RNF: Tensor, micro: PlacedMicroBatch) -> Tensor:
    """Patch tokens where the micro-batch's masks are, [m, F]."""
    return patches_RNF.flatten(0, 1).index_select(0, micro.masked_rows())


def head_outputs(student: Any, teacher: Any, tokens_RF: Tensor) -> HeadOutputs:
    """What the student's head makes of tokens, beside both heads' prototypes."""
    return HeadOutputs(student(tokens_RF), student.prototypes(), teacher.prototypes())


def pairs_of_views(outputs: HeadOutputs, images: int) -> Tensor:
    """Every student view against every other global view of the teacher, [P, 2] on the CPU."""
    views = len(outputs.rows_RD) // images
    return view_pairs(images, views, GLOBAL_VIEWS)


def stand_in(outputs: Outputs, gradient_VbF: Tensor) -> Tensor:
    """A term whose gradient for the CLS features is the one that is given."""
    return (by_view(outputs.global_RF) * gradient_VbF).sum()


def add(totals: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    """Add a micro-batch's terms to the totals, without their graphs."""
    for name, value in terms.items():
        totals[name] = totals.get(name, 0) + value.detach()
