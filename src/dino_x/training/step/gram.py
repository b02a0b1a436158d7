"""The Gram teacher: an earlier, frozen state of the EMA teacher that patch features are held to.

DINOv3 (Simeoni et al. 2025), section 4.2; its config takes the teacher anew every 10,000 steps, at
most three times, with a weight of 2. b images of a micro-batch, V views, N patches, F features.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_x.config.options import GramOptions, ModelOptions, Options
from dino_x.distributed import sharding
from dino_x.errors import UserError
from dino_x.model.backbone import Backbone, build_backbone
from dino_x.training.step.batch_plan import MicroBatch


@dataclass(frozen=True)
class GramTeacher:
    """A frozen backbone, and how often it has been taken anew. Replaced, never changed."""

    backbone: Backbone
    refreshes: int = 0

    @classmethod
    def copy_of(cls, teacher: Backbone, refreshes: int = 0) -> "GramTeacher":
        """The EMA teacher as it is now."""
        if sharding.is_sharded(teacher):
            return cls(sharding.copy_of(teacher), refreshes)
        return cls(copy.deepcopy(teacher).requires_grad_(False), refreshes)


@dataclass(frozen=True)
class GramTerm:
    """Gram anchoring in one step.

    Attributes:
        backbone: of the Gram teacher.
        student_patch_size: side of the student's patches, pixels.
        weight: of the term in this step, above 0.
        resize: how features of larger crops come to the student's grid.
        antialias: whether they are smoothed before; DINOv3's are not.
    """

    backbone: Backbone
    student_patch_size: int
    weight: float
    resize: str
    antialias: bool = False

    @torch.no_grad()
    def targets(self, micro: MicroBatch) -> Tensor:
        """Its features of a micro-batch's global crops, unmasked, on the student's grid of patches.

        [R, N, F], R = V * b.
        """
        backbone = self.backbone
        side = micro.plan.sizes.global_size // self.student_patch_size
        _, patches_RNF = backbone(micro.seen_by(backbone).gram_crops(), None, None)
        gram_size = micro.plan.sizes.gram_size
        assert gram_size is not None
        own = gram_size // backbone.patch_size
        if own == side:
            return patches_RNF
        grid_RFHW = patches_RNF.float() if patches_RNF.dtype.itemsize < 4 else patches_RNF
        grid_RFHW = grid_RFHW.mT.unflatten(2, (own, own))
        resized = F.interpolate(grid_RFHW, (side, side), mode=self.resize, antialias=self.antialias)
        return resized.flatten(2).mT


def first_gram_teacher(options: Options, teacher: Backbone) -> GramTeacher | None:
    """The Gram teacher before the first step, or None if there is none yet.

    Raises: UserError if the one that is named cannot be loaded or is of another width.
    """
    gram = options.gram
    if not gram.weight:
        return None
    if gram.teacher is None:
        return GramTeacher.copy_of(teacher) if gram.start == 0 else None
    wanted = ModelOptions(name=gram.teacher, channels=teacher.channels)
    backbone = build_backbone(wanted, options.views.global_size, options.train.seed)
    if backbone.accounting is None:
        raise UserError(f"gram.teacher '{gram.teacher}' has no weights; name a RUN or a folder")
    if backbone.width != teacher.width:
        raise UserError(
            f"the Gram teacher '{gram.teacher}' has {backbone.width} features a patch, the model"
            f" {teacher.width}; name an earlier state of this model, or leave gram.teacher out"
        )
    where = next(teacher.parameters())
    return GramTeacher(backbone.to(where.device, where.dtype).requires_grad_(False))


def next_gram_teacher(
    gram: GramTeacher | None, teacher: Backbone, done: int, options: GramOptions
) -> GramTeacher | None:
    """The Gram teacher after ``done`` steps: the same, or the EMA teacher as it now is."""
    if not options.weight or done < options.start:
        return gram
    if gram is None:
        return GramTeacher.copy_of(teacher)
    since = done - options.start
    due = options.refresh is not None and since > 0 and since % options.refresh == 0
    if due and gram.refreshes < options.refreshes:
        return GramTeacher.copy_of(teacher, gram.refreshes + 1)
    return gram
