"""Windows of CT: a canvas keeps all Hounsfield units, and each view of it has a window of its own.

A radiologist reads one slice several times: lung, soft tissue, bone, brain. A view draws one of
these and a little around it, so that the network sees each at full contrast and learns what does
not depend on the window.

The window comes after the antialiased resize. Averaging commutes with the linear part of a window
and not with its clipping, and the mean of Hounsfield units is what a scanner with larger pixels
would have measured (they are linear in attenuation): the edge of a bone, half bone and half fat,
is then a value between both. Windowed first, bone would be cut to the window's end before it is
averaged, and thin structures would fade the more, the narrower the window is.

B images of the effective batch, b of a micro-batch, V views.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_x.data.windowing import CT_RANGE

# Centre and width in HU, as radiology departments set them by default.
CT_WINDOWS = {
    "lung": (-600.0, 1500.0),
    "soft tissue": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
CENTRE_JITTER = 0.15  # of the width, to both sides
WIDTH_JITTER = 1.5  # times 1 / x to x

WINDOW_DRAWS = 3  # uniform numbers a view needs: which, centre, width


@dataclass(frozen=True)
class WindowParameters:
    """Windows of views as black and white points on the canvas's scale, both [b, V].

    An image that is no CT has 0 and 1, which change nothing.
    """

    black: Tensor
    white: Tensor


def draw_windows(rng: np.random.Generator, images: int, views: int) -> np.ndarray:
    """Uniform numbers for all views of the effective batch, [B, V, WINDOW_DRAWS] in [0, 1)."""
    return rng.random((images, views, WINDOW_DRAWS))


def named_windows(draws_BVU: np.ndarray) -> np.ndarray:
    """The same draws, of which each gives its named window as it is: neither moved nor widened."""
    named = np.full_like(draws_BVU, 0.5)  # the middle of the range of both changes
    named[..., 0] = draws_BVU[..., 0]
    return named


def window_parameters(draws_BVU: Tensor, hounsfield_B: Tensor) -> WindowParameters:
    """Turn uniform draws into windows: one of ``CT_WINDOWS``, moved and widened a little.

    The centre moves by up to ``CENTRE_JITTER`` of the named width, uniformly; the width is
    multiplied by 1 / ``WIDTH_JITTER`` to ``WIDTH_JITTER``, log-uniformly.

    Args:
        draws_BVU: see ``draw_windows``.
        hounsfield_B: bool, which images are canvases of ``CT_RANGE``.
    """
    which, move, widen = draws_BVU.unbind(dim=-1)
    named = torch.tensor(list(CT_WINDOWS.values()), dtype=which.dtype, device=which.device)
    chosen = (which * len(named)).long().clamp(max=len(named) - 1)
    centre, width = named[chosen].unbind(dim=-1)
    centre = centre + CENTRE_JITTER * width * (2 * move - 1)
    width = width * torch.exp(np.log(WIDTH_JITTER) * (2 * widen - 1))
    low, high = CT_RANGE
    is_ct = hounsfield_B[:, None]
    return WindowParameters(
        black=torch.where(is_ct, (centre - width / 2 - low) / (high - low), 0.0),
        white=torch.where(is_ct, (centre + width / 2 - low) / (high - low), 1.0),
    )


def apply_windows(crops_NCOO: Tensor, windows: WindowParameters) -> Tensor:
    """Black to 0, white to 1, and clip; view-major crops [V * b, C, O, O]."""
    black, white = (value.t().reshape(-1, 1, 1, 1) for value in (windows.black, windows.white))
    return (crops_NCOO - black).div_(white - black).clamp_(0, 1)
