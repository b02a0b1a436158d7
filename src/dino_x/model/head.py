"""The projection head: an MLP to an L2-normalised bottleneck, then prototypes without bias.

The head stops at the bottleneck. Logits over K prototypes are never made here: the losses work
from bottlenecks [R, D] and prototypes [K, D] (DINOv3 has the same head with logits as output).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dino_x.config import HeadOptions


class Head(nn.Module):
    """Tokens [R, features] to bottlenecks [R, D] of norm 1, and the prototypes [K, D]."""

    def __init__(self, features: int, options: HeadOptions) -> None:
        super().__init__()
        widths = [features, *[options.hidden] * (options.layers - 1), options.bottleneck]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after)
            std = 0.02 if options.init == "normal" else math.sqrt(2 / before)
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = nn.Parameter(torch.empty(options.prototypes, options.bottleneck))
        nn.init.trunc_normal_(self.last_layer, std=0.02, a=-0.04, b=0.04)
        self.normalize_prototypes = options.normalize_prototypes

    def forward(self, tokens_RF: Tensor) -> Tensor:
        """Bottlenecks [R, D]."""
        z = self.mlp(tokens_RF)
        return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1, eps=1e-6)

    def prototypes(self) -> Tensor:
        """Prototypes [K, D], on the unit sphere if the options say so."""
        if self.normalize_prototypes:
            return F.normalize(self.last_layer, dim=-1, eps=1e-6)
        return self.last_layer
