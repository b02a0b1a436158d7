"""Stains of histology: how much of each dye a crop shows, a little more or less.

Two laboratories, or two scanners, show the same tissue in other colours. A dye darkens by a power
of its amount (Beer and Lambert), so amounts add up in optical density, OD = -log10(value). Three
dyes with known colours make the three channels of a pixel, and the inverse of their matrix gives
the amounts back: colour deconvolution, Ruifrok and Johnston 2001. The amount of each dye is
multiplied by a number and another one is added, as Tellez et al. 2018 vary stains; then the colour
is put together again.

Both steps are linear in optical density, so they are one matrix and one shift for a crop:

    OD' = OD A + b,    A = M^-1 diag(factor) M,    b = shift M

N crops, b images of a micro-batch, V views, S = 3 dyes, C = 3 channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import ViewOptions
from dino_x.losses.transfer import there

# Optical density of red, green and blue of a unit of each dye: Ruifrok and Johnston 2001, table 1.
DYES_SC = (
    (0.65, 0.70, 0.29),  # haematoxylin
    (0.07, 0.99, 0.11),  # eosin
    (0.27, 0.57, 0.78),  # DAB; in sections without it, what the other two do not explain
)
DARKEST = 1 / 255  # a channel without any light has no optical density: it counts as this

STAIN_DRAWS = 6  # uniform numbers a view needs: a factor and a shift for each dye


@dataclass(frozen=True)
class StainParameters:
    """What happens to each dye, all [b, V]: its amount times a factor, plus a shift."""

    factor_0: Tensor
    factor_1: Tensor
    factor_2: Tensor
    shift_0: Tensor
    shift_1: Tensor
    shift_2: Tensor


def draw_stains(rng: np.random.Generator, images: int, views: int) -> np.ndarray:
    """Uniform numbers for all views of the effective batch, [B, V, STAIN_DRAWS] in [0, 1)."""
    return rng.random((images, views, STAIN_DRAWS))


def stain_parameters(draws_BVU: Tensor, options: ViewOptions) -> StainParameters:
    """Turn uniform draws into factors of 1 - x to 1 + x and shifts of -y to y, both uniform.

    Args:
        draws_BVU: see ``draw_stains``.
        options: x is ``stain``, y is ``stain_shift``.
    """
    around = 2 * draws_BVU - 1
    factors = (1 + options.stain * around[..., :3]).unbind(-1)
    shifts = (options.stain_shift * around[..., 3:]).unbind(-1)
    return StainParameters(*factors, *shifts)


def apply_stains(crops_NCOO: Tensor, stains: StainParameters) -> Tensor:
    """Other amounts of the dyes, in view-major colour crops in [0, 1], which stay in [0, 1].

    A factor of 1 and a shift of 0 leave every pixel as it is, black too.
    """
    dyes_SC = torch.tensor(DYES_SC, dtype=torch.float64)
    dyes_SC = dyes_SC / dyes_SC.norm(dim=1, keepdim=True)
    device, dtype = crops_NCOO.device, crops_NCOO.dtype
    apart_CS = there(torch.linalg.inv(dyes_SC), device, dtype)
    dyes_SC = there(dyes_SC, device, dtype)

    def of_dyes(*values: Tensor) -> Tensor:
        return torch.stack([value.t().flatten() for value in values], dim=1)  # [N, S]

    more_NS = of_dyes(stains.factor_0, stains.factor_1, stains.factor_2) - 1
    shift_NS = of_dyes(stains.shift_0, stains.shift_1, stains.shift_2)
    change_NCD = torch.einsum("cs,ns,sd->ncd", apart_CS, more_NS, dyes_SC)
    density_NCOO = -crops_NCOO.clamp(min=DARKEST).log10()
    added_NCOO = torch.einsum("ncij,ncd->ndij", density_NCOO, change_NCD)
    added_NCOO += (shift_NS @ dyes_SC)[:, :, None, None]
    return (crops_NCOO * torch.pow(10, -added_NCOO)).clamp_(0, 1)
