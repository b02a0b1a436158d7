"""Which images make up a batch: a pure function of the seed and the step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dino_x.randomness import generator


def sample_indices(seed: int, step: int, effective_batch: int, images: int) -> np.ndarray:
    """The images of one optimizer step, by counted randomness.

    A run's images are one endless sequence: a permutation of all images for epoch 0, another for
    epoch 1, and so on. Batch `step` is positions [step * B, (step + 1) * B) of it, so every image
    comes once an epoch whatever B is; B may be larger than the number of images.

    Args:
        seed: the run's seed, not negative.
        step: the optimizer step, from 0.
        effective_batch: B, images a step.
        images: images in the data set.

    Returns: row numbers, int64 [B]. The same arguments always give the same numbers.

    Raises: ValueError if `effective_batch` or `images` is below 1, or `seed` or `step` negative.
    """
    if effective_batch < 1 or images < 1:
        raise ValueError(f"cannot draw a batch of {effective_batch} from {images} images")
    if seed < 0 or step < 0:
        raise ValueError(f"seed {seed} and step {step} must not be negative")
    start, stop = step * effective_batch, (step + 1) * effective_batch
    parts = []
    for epoch in range(start // images, (stop - 1) // images + 1):
        first = epoch * images
        parts.append(_epoch(seed, epoch, images)[max(start - first, 0) : stop - first])
    return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch that crosses the end of an epoch needs two
def _epoch(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of all images in one epoch, int64 [images], read-only."""
    order = generator(seed, epoch, "order of images").permutation(images)
    order.flags.writeable = False
    return order
