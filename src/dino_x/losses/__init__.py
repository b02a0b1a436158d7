"""The losses: pure functions of tensors, usable in any training loop.

Shape letters: N rows (bottlenecks of views or patches), R student rows, T teacher rows,
Q queued rows, D features, K prototypes, P pairs.
"""

from dino_x.losses.gram import gram_loss
from dino_x.losses.koleo import koleo
from dino_x.losses.prototypes import prototype_cross_entropy, view_pairs
from dino_x.losses.sigreg import random_directions, sigreg
from dino_x.losses.sinkhorn import sinkhorn_bias

__all__ = [
    "gram_loss",
    "koleo",
    "prototype_cross_entropy",
    "random_directions",
    "sigreg",
    "sinkhorn_bias",
    "view_pairs",
]
