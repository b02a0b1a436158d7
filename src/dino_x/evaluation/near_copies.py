"""Tested images that are nearly the same picture as one of train, in another file.

Exact copies are found by the bytes of their files. A film that was saved as PNG and as JPEG, or at
two sizes, has other bytes and the same picture; so have neighbouring slices of a volume that were
saved as files of their own. All of these flatter every number if they are on both sides.

N images, Q tested images, D pixels.
"""

import numpy as np

# The correlation of two images at 32 x 32 px from which they count as one picture. On chest films
# JPEG of quality 30 leaves 0.9997 and half the size 0.9999; films of other patients reach 0.978,
# and other films of one patient 0.964.
SAME = 0.999
LEAST_CONTRAST = 0.02  # standard deviation of values in [0, 1]; blank images are all alike
CHUNK_ELEMENTS = 1 << 24


def near_copies(pixels_ND: np.ndarray, is_test: np.ndarray) -> int:
    """How many tested images have nearly the same picture among the others.

    Args:
        pixels_ND: grey values in [0, 1] at 32 x 32 px, of all images.
        is_test: [N] bool, the tested images.
    """
    plain_ND = pixels_ND - pixels_ND.mean(axis=1, keepdims=True)
    length_N = np.linalg.norm(plain_ND, axis=1)
    shows_N = length_N >= LEAST_CONTRAST * np.sqrt(pixels_ND.shape[1])
    directions_ND = plain_ND / np.where(shows_N, length_N, 1)[:, None]
    known = directions_ND[shows_N & ~is_test]
    asked = directions_ND[shows_N & is_test]
    if not len(known):
        return 0
    step = max(1, CHUNK_ELEMENTS // len(known))
    found = 0
    for first in range(0, len(asked), step):
        nearest_Q = (asked[first : first + step] @ known.T).max(axis=1)
        found += int((nearest_Q >= SAME).sum())
    return found


def warn_of_near_copies(pixels_ND: np.ndarray, is_test: np.ndarray) -> list[str]:
    """A sentence for the user where there are such images; arguments as in ``near_copies``."""
    count = near_copies(pixels_ND, is_test)
    if not count:
        return []
    return [
        f"{count:,} of {int(is_test.sum()):,} tested images are nearly the same picture as one that"
        " is not tested (another compression or size of it, or a slice beside it), which flatters"
        " every number here: give such images one patient or group in the labels"
    ]
