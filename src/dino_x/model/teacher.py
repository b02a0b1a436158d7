"""Student and teacher: the same network, of which the teacher is an exponential moving average."""

import copy

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import Options
from dino_x.exact.networks import DinoNetwork
from dino_x.model.backbone import Backbone, ForwardRandomness, build_backbone
from dino_x.model.head import Head


class Network(DinoNetwork):
    """A backbone with a head for CLS tokens (DINO) and one for patch tokens (iBOT)."""

    backbone: Backbone
    dino_head: Head
    ibot_head: Head

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
        dino_head = Head(backbone.width, options.head)
        ibot_head = Head.for_ibot(backbone.width, options.head)
    return Network(backbone, dino_head, ibot_head)


def build_teacher(student: Network) -> Network:
    """A copy of the student that is never trained."""
    return copy.deepcopy(student).requires_grad_(False)
