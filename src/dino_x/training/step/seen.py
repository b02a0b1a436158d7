"""What a network sees of some images: as evaluation prepares them, and as the crops of a step.

The crops are cut by the code of training, from the options of a run, with a step's own draws.
n images, V views, C channels, S side of a square and P patches of it along a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dino_x.config.options import Options
from dino_x.config.resolve import with_values
from dino_x.data.loading.loader import Canvases
from dino_x.data.preparation import whole_canvases
from dino_x.training.step.batch_plan import Cutter, MicroBatch, draw_batch_plan
from dino_x.views.extra import Extra
from dino_x.views.sizes import GLOBAL_VIEWS, crop_sizes

MASKED = 0.25  # of its brightness is left of a masked patch in a picture


@dataclass(frozen=True)
class Seen:
    """What is seen of n images; all values are in [0, 1].

    Attributes:
        whole_nCSS: as evaluation sees them.
        global_nVCSS: the global crops.
        masks_nVPP: which patches of these are masked, bool.
        local_nVCSS: the local crops; V may be 0.
    """

    whole_nCSS: np.ndarray
    global_nVCSS: np.ndarray
    masks_nVPP: np.ndarray
    local_nVCSS: np.ndarray

    @property
    def shaded_nVCSS(self) -> np.ndarray:
        """The global crops with their masked patches darkened."""
        patch = self.global_nVCSS.shape[-1] // self.masks_nVPP.shape[-1]
        shade_nVSS = np.where(self.masks_nVPP, MASKED, 1.0).repeat(patch, 2).repeat(patch, 3)
        return self.global_nVCSS * shade_nVSS[:, :, None]


def seen_of(
    options: Options, canvases: Canvases, channels: int, patch: int, extra: Extra | None = None
) -> Seen:
    """Cut the crops of a step that has just these images.

    Args:
        options: resolved.
        canvases: n images.
        channels: that the network takes.
        patch: side of a patch in pixels.
        extra: the function of ``views.extra``.
    """
    count = len(canvases.pixels)
    options = with_values(options, {"train.effective_batch": count})
    sizes = max(crop_sizes(options), key=lambda one: one.global_size)
    plan = draw_batch_plan(options, 0, count, 1, patch, sizes)
    plan = replace(plan, indices_B=np.arange(count))
    plain = [0.0] * channels, [1.0] * channels  # values stay in [0, 1]
    cutter = Cutter(options, *plain, torch.device("cpu"), torch.float32, extra)
    micro = MicroBatch(plan, slice(0, count), canvases, cutter)
    whole_nCSS = cutter.normalised(
        whole_canvases(canvases.pixels, canvases.hounsfield, sizes.global_size)
    )
    side = sizes.global_size // patch
    masks_nVPP = micro.masks().numpy().reshape(GLOBAL_VIEWS, count, side, side).swapaxes(0, 1)
    local_nVCSS = np.zeros((count, 0, *whole_nCSS.shape[1:]))
    if options.views.local_crops:
        local_nVCSS = _by_image(micro.local_crops(), count)
    global_nVCSS = _by_image(micro.global_crops(), count)
    return Seen(whole_nCSS.numpy(), global_nVCSS, masks_nVPP, local_nVCSS)


def _by_image(crops_RCSS: Tensor, count: int) -> np.ndarray:
    """View-major crops by image: [n, V, C, S, S]."""
    return crops_RCSS.unflatten(0, (-1, count)).transpose(0, 1).numpy()
