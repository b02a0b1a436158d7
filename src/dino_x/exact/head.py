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


class Head(nn.Module):
    """Tokens [R, features] to bottlenecks [R, D] of norm 1, and the prototypes [K, D].

    Args:
        features: width of the backbone's tokens.
        prototypes: K.
        layers: linear layers of the MLP.
        hidden: width of the layers between.
        bottleneck: D.
        init: ``normal`` draws all weights with a standard deviation of 0.02, as in DINOv3;
            ``fan_in`` with what keeps the norm of a row.
        normalize_prototypes: whether prototypes are on the unit sphere, as in DINOv2.
    """

    def __init__(
        self,
        features: int,
        prototypes: int = 65536,
        *,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        init: str = "normal",
        normalize_prototypes: bool = False,
    ) -> None:
        super().__init__()
        widths = [features, *[hidden] * (layers - 1), bottleneck]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            linear = nn.Linear(before, after)
            nn.init.normal_(linear.weight, std=initial_std(init, before))
            nn.init.zeros_(linear.bias)
            modules += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*modules[:-1])
        self.last_layer = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.normal_(self.last_layer, std=initial_std(init, bottleneck))
        self.normalize_prototypes = normalize_prototypes

    def forward(self, tokens_RF: Tensor) -> Tensor:
        """Bottlenecks [R, D]."""
        z = self.mlp(tokens_RF)
        return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=-1, eps=1e-6)

    def prototypes(self) -> Tensor:
        """Prototypes [K, D], on the unit sphere if they are to be.

        Where prototypes are sharded over processes, all processes put them together at once, and
        what flows back is the sum of their gradients.
        """
        rows_KD: Tensor = self.last_layer
        if isinstance(rows_KD, DTensor):
            rows_KD = rows_KD.full_tensor(grad_placements=[Partial()])
        return F.normalize(rows_KD, dim=-1, eps=1e-6) if self.normalize_prototypes else rows_KD


def initial_std(init: str, inputs: int) -> float:
    """Standard deviation of a new matrix with that many inputs."""
    return 0.02 if init == "normal" else 1 / math.sqrt(inputs)
