"""One optimizer step's gradient, exact over the effective batch whatever the micro-batch.

    1. targets     teacher over all micro-batches, keeping bottlenecks; one bias f for each head
    2. neighbours  only if KoLeo's group spans micro-batches: student over the global crops without
                   gradient, KoLeo over the group, its gradient with respect to each CLS feature
    3. gradients   student forward and backward, micro-batch by micro-batch

With several processes each has a share of the images. What phases 1 and 2 look at is gathered from
all of them, and gradients are summed once, after 3: a process more is like more micro-batches.
Where each process has a part of the networks, they are summed in each micro-batch, and all go
through the same forwards and backwards: see sharding.py.

The student's randomness is replayed in 3 as it was in 2. Nothing here changes the teacher, the
centers or a weight: gradients are left in ``.grad``, and what the update needs is returned.

B: images of the effective batch, b: of a micro-batch, V: views, D: bottleneck, F: backbone
features, K: prototypes, M: masked patches of the effective batch, m: of a micro-batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import LossOptions
from dino_x.distributed.agreement import Agreement
from dino_x.distributed.shares import all_sizes
from dino_x.losses import gram_loss, koleo, prototype_cross_entropy, sinkhorn_bias, view_pairs
from dino_x.losses.centering import center_bias, next_center
from dino_x.losses.checks import check_finite
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.model.head import Head
from dino_x.model.teacher import Network
from dino_x.training.step.batch_plan import MicroBatch
from dino_x.training.step.gram import GramTerm
from dino_x.training.step.probe import Probe, ProbedRows
from dino_x.training.step.queue import Queues
from dino_x.views.sizes import GLOBAL_VIEWS

TERMS = ("dino", "ibot", "koleo", "gram", "loss")
NONE = np.empty(0, dtype=np.int64)  # of the patches: only CLS tokens are looked at
PIECE = 2**24  # gradients summed over processes in one message: 64 MiB in float32


@dataclass
class Centers:
    """Running mean of the teacher's logits, for softmax centering. Replaced once a step."""

    dino_K: Tensor
    ibot_K: Tensor


@dataclass(frozen=True)
class Targets:
    """What phase 1 keeps of the teacher: bottlenecks and one bias a head, never logits.

    Bottlenecks are in one tensor for each micro-batch, in order.
    """

    cls_VbD: list[Tensor]
    patches_mD: list[Tensor]  # of the masked patches
    dino_bias_K: Tensor
    ibot_bias_K: Tensor
    next_centers: Centers
    next_queues: Queues


class HeadOutputs(NamedTuple):
    """Phase 3's bottlenecks of one head, and the prototypes they are compared with."""

    rows_RD: Tensor
    student_KD: Tensor
    teacher_KD: Tensor

    @classmethod
    def of(cls, student: Head, teacher: Head, tokens_RF: Tensor) -> "HeadOutputs":
        """What the student's head makes of tokens."""
        return cls(student(tokens_RF), student.prototypes(), teacher.prototypes())


class Outputs(NamedTuple):
    """What the networks make of a micro-batch in phase 3, before any loss is computed.

    Attributes:
        global_BF: the student's CLS tokens of the global crops.
        patches_BNF: their patch tokens; those masked alone, [m, F], without Gram anchoring.
        dino, ibot: of its heads; no ibot if no patch of the effective batch is masked.
        gram_BNF: the Gram teacher's patches.
        later_BF, cut_BF: CLS tokens of the local crops, where their backward comes after that of
            all else. In one backward, no block's gradient is whole before both kinds of crops have
            been through it, and cannot be cut into parts before.
    """

    global_BF: Tensor
    patches_BNF: Tensor
    dino: HeadOutputs
    ibot: HeadOutputs | None
    gram_BNF: Tensor | None
    later_BF: Tensor | None
    cut_BF: Tensor

    def finish_backward(self) -> None:
        """After the loss's backward: that of the local crops, if it was left out."""
        if self.later_BF is not None:
            self.later_BF.backward(self.cut_BF.grad)


@dataclass(frozen=True)
class StepResult:
    """Loss terms of the effective batch, and the centers and queues that follow from it.

    And a few rows for health to look at, if a ``Probe`` was given.
    """

    terms: dict[str, float]
    next_centers: Centers
    next_queues: Queues
    sample: ProbedRows | None = None


@dataclass(frozen=True)
class ExactStep:
    """The three phases, for one student and teacher.

    Attributes:
        student, teacher: networks; only the student's ``.grad`` is ever written.
        loss: resolved options (centering is not ``auto``).
        precision: opens the autocast context of a forward.
        distilled: whether the teacher is another network, with its own preparation of images.
        ranks: the processes that share the effective batch.
        sharded: whether each of them has a part of the networks.
        agreement: what they tell each other after each phase.
    """

    student: Network
    teacher: Network
    loss: LossOptions
    precision: Callable[[], AbstractContextManager]
    distilled: bool = False
    ranks: Ranks = ALONE
    sharded: bool = False
    agreement: Agreement = field(default_factory=Agreement)

    def backward(
        self,
        micro_batches: Callable[[], Iterable[MicroBatch]],
        images: int,
        micro_size: int,
        centers: Centers,
        queues: Queues,
        teacher_temperature: float,
        gram: GramTerm | None = None,
        sampling: Probe | None = None,
    ) -> StepResult:
        """Add the gradient of the effective batch's loss to ``.grad`` of the student.

        Args:
            micro_batches: starts a pass over this process's share of the window; called once for
                each phase.
            images: B.
            micro_size: b, at most.
            centers: as they are before this step.
            queues: likewise.
            teacher_temperature: of this step.
            gram: Gram anchoring, if it counts in this step.
            sampling: gathers rows for health; it changes nothing.
        """
        targets = self.targets(micro_batches(), centers, queues, teacher_temperature, sampling)
        group = images if self.loss.koleo_group == "effective" else self.loss.koleo_group
        totals: dict[str, Tensor] = {}
        of_group: dict[str, Tensor] = {}
        pulls_VbF: Sequence[Tensor] | None = None
        sizes = all_sizes(images, micro_size, self.ranks.world_size)
        if self.loss.koleo_weight and any(size % group for size in sizes):
            of_group["koleo"], pulls_VbF = self.neighbours(micro_batches(), group)
        with self.phase():
            for position, micro in enumerate(self.each(micro_batches())):
                pull_VbF = None if pulls_VbF is None else pulls_VbF[position]
                outputs = self.forward(micro, gram, sampling)
                with self.part_of_micro_batch():
                    terms = self.losses(
                        outputs,
                        micro,
                        targets,
                        position,
                        group,
                        pull_VbF,
                        teacher_temperature,
                        gram,
                    )
                if terms["loss"].requires_grad:  # not if all that is trained has no loss
                    terms["loss"].backward()
                    outputs.finish_backward()
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0) + value.detach()
        if not self.sharded:
            sum_gradients(self.student, self.ranks)
        totals = sum_terms(totals, self.ranks, centers.dino_K.device) | of_group
        if of_group:  # what was backpropagated stands for KoLeo, but is not its value
            totals["loss"] = self.weighted(totals, gram)
        values = {name: float(totals[name]) for name in TERMS if name in totals}
        sample = None
        if sampling is not None:
            sample = sampling.finish(targets.dino_bias_K, teacher_temperature, self.of_all_ranks)
        return StepResult(values, targets.next_centers, targets.next_queues, sample)

    def phase(self) -> AbstractContextManager:
        """What the processes do each with its own micro-batches, or in parts all together."""
        return self.agreement.part(joint=self.sharded)

    def part_of_micro_batch(self) -> AbstractContextManager:
        """What a process does by itself between forwards and backwards that all do together."""
        return self.agreement.part() if self.sharded else nullcontext()

    def each(self, micro_batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """The micro-batches of a phase; with networks in parts each once all processes have one."""
        waiting = iter(micro_batches)
        while True:
            with self.part_of_micro_batch():
                micro = next(waiting, None)
            if micro is None:
                return
            yield micro

    @torch.no_grad()
    def bottlenecks(
        self, micro_batches: Iterable[MicroBatch], sampling: Probe | None = None
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The teacher's CLS [V, b, D] and masked-patch [m, D] bottlenecks of each micro-batch.

        And those of all processes, [V * B, D] and [M, D], by view, image and patch: an order that
        depends on neither micro-batches nor processes.
        """
        cls, patches, places = [], [], []
        with self.phase():
            for micro in self.each(micro_batches):
                with self.precision():
                    seen = micro.seen_by(self.teacher.backbone) if self.distilled else micro
                    cls_BF, patches_BNF = self.teacher(seen.global_crops(), None, None)
                    cls_BD = self.teacher.dino_head(cls_BF)
                    cls.append(cls_BD.unflatten(0, (GLOBAL_VIEWS, -1)))
                    patches.append(self.teacher.ibot_head(masked_rows(patches_BNF, micro)))
                places.append(micro.masked_places())
                if sampling is not None:
                    sampling.teacher(micro, cls_BF, patches_BNF, cls_BD)
        all_cls_VBD = self.of_all_ranks(torch.cat(cls, dim=1))
        order_M = self.ranks.concatenate(torch.cat(places)).argsort()
        all_patches_MD = self.ranks.concatenate(torch.cat(patches))[order_M]
        return cls, patches, all_cls_VBD.flatten(0, 1), all_patches_MD

    def of_all_ranks(self, features_VbF: Tensor) -> Tensor:
        """The features of the images of all processes, [V, B, F], from those of this one."""
        return self.ranks.concatenate(features_VbF.transpose(0, 1)).transpose(0, 1)

    @torch.no_grad()
    def targets(
        self,
        micro_batches: Iterable[MicroBatch],
        centers: Centers,
        queues: Queues,
        temperature: float,
        sampling: Probe | None = None,
    ) -> Targets:
        """Phase 1: the teacher's bottlenecks, and the bias of each head over all of them."""
        cls, patches, cls_RD, patches_MD = self.bottlenecks(micro_batches, sampling)
        dino_bias, dino_center = self.bias(
            cls_RD, queues.dino_QD, self.teacher.dino_head, centers.dino_K, temperature
        )
        ibot_bias, ibot_center = self.bias(
            patches_MD, queues.ibot_QD, self.teacher.ibot_head, centers.ibot_K, temperature
        )
        return Targets(
            cls,
            patches,
            dino_bias,
            ibot_bias,
            Centers(dino_center, ibot_center),
            queues.next(cls_RD, patches_MD),
        )

    def bias(
        self,
        bottlenecks_RD: Tensor,
        queue_QD: Tensor,
        head: Head,
        center_K: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """The bias f [K] that centers the targets of all R rows, and the next center."""
        if len(bottlenecks_RD) == 0:
            return torch.zeros_like(center_K), center_K
        check_finite("the teacher's bottlenecks", bottlenecks_RD)
        prototypes = head.prototypes()
        if self.loss.centering == "sinkhorn":
            # Every process has all rows; each brings a share, so that products are shared too.
            share, queued = (self.ranks.share(len(rows)) for rows in (bottlenecks_RD, queue_QD))
            bias = sinkhorn_bias(
                bottlenecks_RD[share],
                prototypes,
                temperature,
                self.loss.sinkhorn_iterations,
                relaxation=self.loss.sinkhorn_relaxation,
                extra_bottlenecks_QD=queue_QD[queued] if len(queue_QD) else None,
                group=self.ranks.group,
                implementation="streaming" if self.loss.implementation == "fused" else "reference",
            )
            return bias, center_K
        center = next_center(
            center_K, bottlenecks_RD.mean(dim=0), prototypes, self.loss.center_momentum
        )
        return center_bias(center_K, temperature), center

    def neighbours(
        self, micro_batches: Iterable[MicroBatch], group: int
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Phase 2: KoLeo over groups of images, and its gradient for each CLS feature.

        The gradient is [V, b, F] for each micro-batch.
        """
        cls = []
        with self.phase():
            for micro in self.each(micro_batches):
                with torch.no_grad(), self.precision():
                    cls_BF, _ = self.student(
                        micro.global_crops(), micro.masks(), micro.global_randomness(), NONE
                    )
                cls.append(cls_BF.unflatten(0, (GLOBAL_VIEWS, -1)))
        cls_VBF = self.of_all_ranks(torch.cat(cls, dim=1)).requires_grad_()
        value = sum_over_views(cls_VBF, group)
        (gradient,) = torch.autograd.grad(value, cls_VBF)
        own = gradient[:, self.ranks.share(cls_VBF.shape[1])]
        return value.detach(), own.split([part.shape[1] for part in cls], dim=1)

    def forward(
        self, micro: MicroBatch, gram: GramTerm | None = None, sampling: Probe | None = None
    ) -> Outputs:
        """Phase 3: what the networks make of a micro-batch, with a graph."""
        with self.precision():
            masked_m = micro.masked_index()
            global_BF, patches = self.student(
                micro.global_crops(),
                micro.masks(),
                micro.global_randomness(),
                masked_m if gram is None else None,
            )
            if sampling is not None:
                sampling.student(micro, global_BF)
            views, later = [global_BF], None
            if micro.window.local_views:
                local_BF, _ = self.student(
                    micro.local_crops(), None, micro.local_randomness(), NONE
                )
                if self.sharded and local_BF.requires_grad:
                    later = local_BF
                    local_BF = local_BF.detach().requires_grad_()
                views.append(local_BF)
            views_BF = torch.cat(views)
            dino = HeadOutputs.of(self.student.dino_head, self.teacher.dino_head, views_BF)
            ibot = None
            if self.loss.ibot_weight and micro.window.masked_crops:  # of any process
                rows_mF = patches if gram is None else masked_rows(patches, micro)
                ibot = HeadOutputs.of(self.student.ibot_head, self.teacher.ibot_head, rows_mF)
            grid_BNF = None if gram is None else gram.targets(micro, self.student.backbone)
        return Outputs(global_BF, patches, dino, ibot, grid_BNF, later, views[-1])

    def losses(
        self,
        outputs: Outputs,
        micro: MicroBatch,
        targets: Targets,
        position: int,
        group: int,
        pull_VbF: Tensor | None,
        teacher_temperature: float,
        gram: GramTerm | None = None,
    ) -> dict[str, Tensor]:
        """Phase 3: this micro-batch's part of each loss term, and of the loss, with a graph."""
        share = micro.images / micro.window.images
        temperatures = {
            "student_temperature": self.loss.student_temperature,
            "teacher_temperature": teacher_temperature,
            "implementation": self.loss.implementation,
        }
        dino, ibot = outputs.dino, outputs.ibot
        with self.precision():
            pairs_P2 = view_pairs(micro.images, len(dino.rows_RD) // micro.images, GLOBAL_VIEWS)
            terms = {
                "dino": share
                * prototype_cross_entropy(
                    dino.rows_RD,
                    dino.student_KD,
                    targets.cls_VbD[position].flatten(0, 1),
                    dino.teacher_KD,
                    targets.dino_bias_K,
                    pairs_P2.to(dino.rows_RD.device),
                    **temperatures,
                )
            }
            if ibot is not None and len(ibot.rows_RD):
                rows = torch.arange(len(ibot.rows_RD), device=ibot.rows_RD.device)
                terms["ibot"] = prototype_cross_entropy(
                    ibot.rows_RD,
                    ibot.student_KD,
                    targets.patches_mD[position],
                    ibot.teacher_KD,
                    targets.ibot_bias_K,
                    torch.stack([rows, rows], dim=1),
                    micro.masked_weights(),
                    **temperatures,
                )
            elif ibot is not None:  # nothing, but it goes backward as in other micro-batches
                terms["ibot"] = 0.0 * (ibot.rows_RD.sum() + ibot.student_KD.sum())
            if outputs.gram_BNF is not None:
                terms["gram"] = share * gram_loss(outputs.patches_BNF, outputs.gram_BNF)
        cls_VbF = outputs.global_BF.unflatten(0, (GLOBAL_VIEWS, -1))
        if pull_VbF is not None:
            pull = (cls_VbF * pull_VbF).sum()
            return terms | {"loss": self.weighted(terms, gram) + self.loss.koleo_weight * pull}
        if self.loss.koleo_weight:
            terms["koleo"] = share * sum_over_views(cls_VbF, group)
        return terms | {"loss": self.weighted(terms, gram)}

    def weighted(self, terms: dict[str, Tensor], gram: GramTerm | None = None) -> Tensor:
        """The loss: the weighted sum of the terms there are."""
        weights = {
            "dino": self.loss.dino_weight,
            "ibot": self.loss.ibot_weight,
            "koleo": self.loss.koleo_weight,
            "gram": 0.0 if gram is None else gram.weight,
        }
        return sum((weights[k] * v for k, v in terms.items() if k in weights), torch.tensor(0.0))


def sum_over_views(cls_VBF: Tensor, group: int) -> Tensor:
    """KoLeo of each global view among its own images, summed over views as in DINOv2/v3."""
    return torch.stack([koleo(cls_BF, group) for cls_BF in cls_VBF]).sum()


def sum_terms(totals: dict[str, Tensor], ranks: Ranks, device: torch.device) -> dict[str, Tensor]:
    """Loss terms summed over processes; a process may lack a term that others have."""
    if ranks.world_size == 1:
        return totals
    none = torch.zeros((), device=device)  # processes speak through their card
    values = ranks.sum_(torch.stack([totals.get(name, none) for name in TERMS]))
    present = ranks.numbers([int(name in totals) for name in TERMS], device)
    return {name: values[i] for i, name in enumerate(TERMS) if any(row[i] for row in present)}


def sum_gradients(student: Network, ranks: Ranks) -> None:
    """The gradients of all processes, summed, in each of them; communicated in few pieces.

    A weight that has a gradient in no process keeps none, as with one process.
    """
    if ranks.world_size == 1:
        return
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    present = torch.tensor([float(w.grad is not None) for w in weights], device=weights[0].device)
    used = [w for w, any_has in zip(weights, ranks.max_(present).tolist(), strict=True) if any_has]
    for weight in used:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    while used:
        piece: list[Tensor] = []
        size = 0
        while used and (not piece or size + used[0].numel() <= PIECE):
            piece.append(used.pop(0))
            size += piece[-1].numel()
        gradients = [weight.grad for weight in piece if weight.grad is not None]
        summed = ranks.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = summed.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def masked_rows(patches_BNF: Tensor, micro: MicroBatch) -> Tensor:
    """Patch tokens where the micro-batch's masks are, [m, F]."""
    index_m = torch.from_numpy(micro.masked_index()).to(patches_BNF.device)
    return patches_BNF.flatten(0, 1).index_select(0, index_m)
