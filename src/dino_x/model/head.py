"""The projection head: an MLP to an L2-normalised bottleneck, then prototypes without bias.

The head stops at the bottleneck. Logits over K prototypes are never made here: the losses work
from bottlenecks [R, D] and prototypes [K, D] (DINOv3 has the same head with logits as output).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn import functional as F

from dino_x.config.options import HeadOptions


class Head(nn.Module):
    """Tokens [R, features] to bottlenecks [R, D] of norm 1, and the prototypes [K, D]."""

    def __init__(self, features: int, options: HeadOptions) -> None:
        super().__init__()
        widths = [features, *[options.hidden] * (options.layers - 1), options.bottleneck]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after)
            nn.init.normal_(linear.weight, std=initial_std(options, before))
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Parameter(torch.empty(options.prototypes, options.bottleneck))
        nn.init.normal_(self.last_layer, std=initial_std(options, options.bottleneck))
        self.normalize_prototypes = options.normalize_prototypes

    def forward(self, tokens_RF: Tensor) -> Tensor:
        """Bottlenecks [R, D]."""
        z = self.mlp(tokens_RF)
        return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1, eps=1e-6)

    def prototypes(self) -> Tensor:
        """Prototypes [K, D], on the unit sphere if the options say so.

        Where each process has a part of them, they are put together by all processes at once, and
        what flows back is the sum of their gradients.
        """
        rows_KD: Tensor = self.last_layer
        if isinstance(rows_KD, DTensor):
            rows_KD = rows_KD.full_tensor(grad_placements=[Partial()])
        return F.normalize(rows_KD, dim=-1, eps=1e-6) if self.normalize_prototypes else rows_KD


def initial_std(options: HeadOptions, inputs: int) -> float:
    """Of a matrix with that many inputs: 0.02 as in DINOv3, or what keeps rows at norm 1."""
    return 0.02 if options.init == "normal" else 1 / math.sqrt(inputs)
