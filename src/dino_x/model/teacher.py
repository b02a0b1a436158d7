"""Student and teacher: the same network, of which the teacher is an exponential moving average."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from dino_x.config.options import Options
from dino_x.model.backbone import Backbone, ForwardRandomness, build_backbone
from dino_x.model.head import Head


class Network(nn.Module):
    """A backbone with a head for CLS tokens (DINO) and one for patch tokens (iBOT)."""

    def __init__(self, backbone: Backbone, dino_head: Head, ibot_head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.dino_head = dino_head
        self.ibot_head = ibot_head

    def forward(
        self,
        crops: Tensor,
        mask_BN: Tensor | None,
        randomness: ForwardRandomness | None,
        patches_W: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The backbone's CLS [B, D] and patch tokens [B, N, D], or [W, D]; see ``Backbone``."""
        return self.backbone(crops, mask_BN, randomness, patches_W)


def build_student(options: Options, backbone: Backbone | None = None) -> Network:
    """The student, with a backbone that is loaded already or not; new weights by the seed alone."""
    if backbone is None:
        backbone = build_backbone(options.model, options.views.global_size, options.train.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.train.seed + 1)
        heads = [Head(backbone.width, options.head) for _ in range(2)]
    return Network(backbone, *heads)


def build_teacher(student: Network) -> Network:
    """A copy of the student that is never trained."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: Network, student: Network, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student``; once an optimizer step."""
    pairs = zip(teacher.parameters(), student.parameters(), strict=True)
    averages, weights = zip(*pairs, strict=True)
    torch._foreach_lerp_(list(averages), list(weights), 1 - momentum)
