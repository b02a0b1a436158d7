"""What a step lets health look at: a few rows, taken by their position in the effective batch.

Rows are gathered micro-batch by micro-batch while the step makes them anyway. Which ones depends on
the effective batch alone, so the micro-batch changes what is seen by rounding only.

S images of the sample, V global views, D bottleneck, F features of the backbone, K prototypes.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dino_x.exact.processes import Processes
from dino_x.losses.transfer import there
from dino_x.training.step.batch_plan import MicroBatch
from dino_x.views.sizes import GLOBAL_VIEWS


@dataclass(frozen=True)
class ProbedRows:
    """Detached rows of one step, by view and image.

    Attributes:
        teacher_bottlenecks_VSD: of the global crops.
        dino_bias_K: what centers the step's targets.
        teacher_temperature: of the step.
        teacher_features_VSF, student_features_VSF: CLS tokens of the global crops; the student's
            are of partly masked crops.
        patch_similarity_VS: mean cosine between two different patches of a crop, teacher.
    """

    teacher_bottlenecks_VSD: Tensor
    dino_bias_K: Tensor
    teacher_temperature: float
    teacher_features_VSF: Tensor
    student_features_VSF: Tensor
    patch_similarity_VS: Tensor


@dataclass
class Probe:
    """Gathers a ``ProbedRows`` in the passes of a step.

    Attributes:
        positions_S: image positions in the effective batch, rising.
    """

    positions_S: np.ndarray
    teacher_VsD: list[Tensor] = field(default_factory=list)
    teacher_VsF: list[Tensor] = field(default_factory=list)
    student_VsF: list[Tensor] = field(default_factory=list)
    similarity_Vs: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, images: int, rows: int) -> "Probe":
        """Of at most ``rows`` views: whole images, evenly spaced over the effective batch."""
        count = max(1, min(images, rows // GLOBAL_VIEWS))
        return cls(np.arange(count) * images // count)

    def _chosen(self, micro: MicroBatch, rows: Tensor) -> Tensor:
        """The sample's images among view-major rows [V * b, ...] of a micro-batch: [V, s, ...]."""
        inside = (self.positions_S >= micro.span.start) & (self.positions_S < micro.span.stop)
        places_s = there(self.positions_S[inside] - micro.span.start, rows.device)
        return rows.detach().unflatten(0, (GLOBAL_VIEWS, -1)).index_select(1, places_s)

    def teacher(
        self, micro: MicroBatch, cls_BF: Tensor, patches_BNF: Tensor, cls_BD: Tensor
    ) -> None:
        """Pass 1: the teacher's features of a micro-batch, and its bottlenecks."""
        self.teacher_VsF.append(self._chosen(micro, cls_BF))
        self.teacher_VsD.append(self._chosen(micro, cls_BD))
        self.similarity_Vs.append(patch_similarity(self._chosen(micro, patches_BNF)))

    def student(self, micro: MicroBatch, cls_BF: Tensor) -> None:
        """Pass 3: the student's features of a micro-batch."""
        self.student_VsF.append(self._chosen(micro, cls_BF))

    def finish(self, dino_bias_K: Tensor, temperature: float, processes: Processes) -> ProbedRows:
        """After the last pass: the rows of all processes, [V, S, ...]."""

        def whole(parts: list[Tensor]) -> Tensor:
            return processes.gather_views(torch.cat(parts, dim=1))

        return ProbedRows(
            teacher_bottlenecks_VSD=whole(self.teacher_VsD),
            dino_bias_K=dino_bias_K,
            teacher_temperature=temperature,
            teacher_features_VSF=whole(self.teacher_VsF),
            student_features_VSF=whole(self.student_VsF),
            patch_similarity_VS=whole(self.similarity_Vs),
        )


def patch_similarity(patches_VSNF: Tensor) -> Tensor:
    """Mean cosine between two different patches of each crop, [V, S], -1 to 1; 1 for one patch.

    Without the N x N cosines: the squared norm of the sum of N unit vectors is N plus the sum over
    ordered pairs.
    """
    wide = patches_VSNF if patches_VSNF.dtype == torch.float64 else patches_VSNF.float()
    patches = wide.shape[2]
    if patches < 2:
        return wide.new_ones(wide.shape[:2])
    squared_VS = functional.normalize(wide, dim=-1).sum(dim=2).square().sum(dim=-1)
    return (squared_VS - patches) / (patches * (patches - 1))
