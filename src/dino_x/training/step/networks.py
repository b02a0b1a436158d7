"""Student and teacher of a run over the micro-batches of a plan: all that is random is counted."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dino_x.exact.networks import Patches
from dino_x.model.teacher import Network
from dino_x.training.step.batch_plan import MicroBatch

NO_PATCHES = np.empty(0, dtype=np.int64)  # only CLS tokens are looked at


@dataclass(frozen=True)
class PlannedNetworks:
    """What the step asks of a run's networks.

    Attributes:
        student, teacher: of the run, or a teacher that is distilled.
        distilled: whether the teacher is a frozen one that is distilled. It then has a preparation
            of images of its own, and no patch is hidden from the student: the iBOT term compares
            patches that both networks see, at the places of the masks, as in DINOv3's
            distillation (Simeoni et al. 2025, section 5.2, and the configuration released with it).
    """

    student: Network
    teacher: Network
    distilled: bool = False

    def begin(self) -> None:
        """Begin a step; there is nothing to forget, as the plan holds all draws."""

    def teacher_tokens(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        """The teacher's tokens of unmasked global crops."""
        seen = micro.seen_by(self.teacher.backbone) if self.distilled else micro
        return self.teacher(seen.global_crops(), None, None)

    def student_tokens(self, micro: MicroBatch, patches: Patches) -> tuple[Tensor, Tensor]:
        """The student's tokens of global crops; only the patches that are asked for.

        The crops are masked, but for distillation.
        """
        needed = {"none": NO_PATCHES, "all": None}
        wanted = needed[patches] if patches in needed else micro.masked_index()
        masks = None if self.distilled else micro.masks()
        return self.student(micro.global_crops(), masks, micro.global_randomness(), wanted)

    def student_local_tokens(self, micro: MicroBatch) -> Tensor | None:
        """The student's CLS tokens of local crops."""
        if not micro.plan.local_views:
            return None
        cls_RF, _ = self.student(micro.local_crops(), None, micro.local_randomness(), NO_PATCHES)
        return cls_RF
