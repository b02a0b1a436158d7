"""A patch embedding for other input: fewer or more channels, or patches of another size.

A patch token is ``sum over c, y, x of kernel[d, c, y, x] * (image[c, y, x] - mean[c]) / std[c]``
plus a bias. D features, C channels, P side of a patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def grey_kernels(
    kernels_DCPP: Tensor, bias_D: Tensor, mean_C: Sequence[float], std_C: Sequence[float]
) -> tuple[Tensor, Tensor, float, float]:
    """Kernels of one channel that see a grey image as these of C channels see it repeated.

    Kernels are summed over channels, each divided by its std, and what its mean took off goes into
    the bias. That is exact: with the returned mean and std (the averages of the old ones) every
    patch token of a grey image stays the same.

    Args:
        kernels_DCPP: [D, C, P, P].
        bias_D: [D].
        mean_C, std_C: of the old channels, on the scale where images are in [0, 1].

    Returns: kernels [D, 1, P, P], bias [D], and the one channel's mean and std.
    """
    wide = kernels_DCPP.double()
    mean, std = wide.new_tensor(mean_C), wide.new_tensor(std_C)
    new_mean, new_std = mean.mean(), std.mean()
    kernels = torch.einsum("dcyx,c->dyx", wide, new_std / std)[:, None]
    bias = bias_D.double() + torch.einsum("dcyx,c->d", wide, (new_mean - mean) / std)
    return kernels.to(kernels_DCPP.dtype), bias.to(bias_D.dtype), float(new_mean), float(new_std)


def repeated_kernels(kernels_D1PP: Tensor, channels: int) -> Tensor:
    """Kernels of ``channels`` channels from those of one, each 1 / channels of it.

    A grey image, repeated, gives the same patch tokens; of different channels they see the mean.
    Mean and std of the one channel go for all.
    """
    return kernels_D1PP.repeat(1, channels, 1, 1) / channels


def resized_kernels(kernels_DCPP: Tensor, size: int) -> Tensor:
    """Kernels for patches of another size, [D, C, size, size].

    Those under which a patch, enlarged bilinearly, has the token it had; if the new size is
    smaller, the nearest to it by least squares.
    Source: Beyer et al. 2023 (FlexiViT), section 3.4, "PI-resize".
    """
    old = kernels_DCPP.shape[-1]
    pixels = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    enlarged = F.interpolate(
        pixels, (size, size), mode="bilinear", antialias=size < old, align_corners=False
    )
    enlarge_NO = enlarged.flatten(1).T  # [size * size, old * old]: a patch to the larger one
    flat = kernels_DCPP.double().flatten(2)
    resized = flat @ torch.linalg.pinv(enlarge_NO)
    return resized.view(*kernels_DCPP.shape[:2], size, size).to(kernels_DCPP.dtype)
