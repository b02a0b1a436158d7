"""Softmax centering (Caron et al. 2021, eq. 4): the bias is minus a running mean of logits.

Sinkhorn-Knopp and softmax centering both end in ``softmax(logits / temperature + f)``; here
``f = -center / temperature``. The mean logit of a batch is the logit of its mean bottleneck, so the
center of an effective batch needs one D-vector, not [N, K] logits.
"""

from torch import Tensor


def center_bias(center_K: Tensor, temperature: float) -> Tensor:
    """The bias f, [K], for targets ``softmax(logits / temperature + f)``."""
    return -center_K / temperature


def next_center(
    center_K: Tensor, mean_bottleneck_D: Tensor, prototypes_KD: Tensor, momentum: float
) -> Tensor:
    """The center after a step: ``momentum * center + (1 - momentum) * mean logit``.

    Args:
        center_K: before the step, [K].
        mean_bottleneck_D: mean of the teacher's bottlenecks over the whole effective batch, [D].
        prototypes_KD: the teacher's prototypes, [K, D].
        momentum: 0 to 1.
    """
    mean_logit_K = prototypes_KD.to(center_K.dtype) @ mean_bottleneck_D.to(center_K.dtype)
    return center_K.lerp(mean_logit_K, 1 - momentum)
