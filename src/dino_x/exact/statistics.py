"""Terms of the loss that look at the whole effective batch through one row an image.

Plain gradient accumulation gives such a term the images of a micro-batch. The step gives it all: it
gathers the rows without gradients, takes the term's gradient with respect to each row, and hands
each micro-batch the gradient of its own rows. A new term is one more class like ``KoLeo`` and
``SIGReg``.

V: global views, B: images, F: features of the backbone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dino_x.losses.koleo import koleo
from dino_x.losses.sigreg import random_directions, sigreg


class BatchStatistic(Protocol):
    """A term of the loss over the student's CLS features of the global crops.

    Attributes:
        name: of the term among those of the loss.
        weight: of the term in the loss; 0 turns it off.
    """

    @property
    def name(self) -> str:
        """Name of the term."""

    @property
    def weight(self) -> float:
        """Weight of the term."""

    def spans(self, sizes: Sequence[int], images: int) -> bool:
        """Whether it looks beyond a micro-batch.

        Args:
            sizes: images of each micro-batch of all processes, in the order of the batch.
            images: of the effective batch, B.
        """

    def value(self, cls_VBF: Tensor, images: int) -> Tensor:
        """The term over these images: all of them if it spans micro-batches, else those of one.

        Args:
            cls_VBF: the student's CLS features.
            images: of the effective batch.
        """


@dataclass(frozen=True)
class KoLeo:
    """KoLeo of each global view among its own images, summed over views as in DINOv2 and DINOv3.

    Attributes:
        weight: of the term.
        group: consecutive images among which a neighbour is looked for; None is all images of the
            effective batch.
    """

    weight: float = 0.1
    group: int | None = None
    name: str = "koleo"

    def spans(self, sizes: Sequence[int], images: int) -> bool:
        """Whether a group of images does not lie within one micro-batch."""
        group = self.group or images
        return any(size % group for size in sizes)

    def value(self, cls_VBF: Tensor, images: int) -> Tensor:
        """The mean over images, summed over views."""
        group = self.group or images
        return torch.stack([koleo(cls_BF, group) for cls_BF in cls_VBF]).sum()


@dataclass(frozen=True)
class SIGReg:
    """SIGReg of each global view over the whole effective batch, the mean over views.

    Attributes:
        weight: of the term.
        directions: random directions along which features are looked at.
        knots: where their characteristic functions are compared.
        seed: of the directions. Give each step another, ``replace(statistic, seed=step)``; it must
            be the same in all processes.
    """

    weight: float = 0.05
    directions: int = 1024
    knots: int = 17
    seed: int = 0
    name: str = "sigreg"

    def spans(self, sizes: Sequence[int], images: int) -> bool:
        """Whether a micro-batch is not the whole effective batch."""
        return any(size != images for size in sizes)

    def value(self, cls_VBF: Tensor, images: int) -> Tensor:
        """The mean over views."""
        directions_FM = random_directions(cls_VBF.shape[2], self.directions, self.seed)
        values = [sigreg(cls_BF, directions_FM, self.knots) for cls_BF in cls_VBF]
        return torch.stack(values).mean()
