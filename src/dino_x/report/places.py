"""How much a map of features follows position alone, and not what is in the image.

M places of all images together, C colours, P terms of a polynomial.
"""

from collections.abc import Sequence

import numpy as np

DEGREE = 3  # of the polynomial in x and y


def share_by_position(maps: Sequence[np.ndarray]) -> float:
    """The share of the variance of colours that the place in the image tells, 0 to 1.

    One smooth function of the place (a polynomial of degree 3), the same for all images, is fitted
    to each colour by least squares. Colours that follow anatomy differ from image to image, as
    anatomy does not lie at one place; what is left then is small.

    Args:
        maps: [Y, X, C] of each image, of one size or of several.

    Returns: R2 over all colours; 0 for maps of one colour.

    >>> y, x = np.mgrid[0:1:8j, 0:1:8j]
    >>> round(share_by_position([np.stack([x, y, x * y], axis=2)] * 3), 3)
    1.0
    """
    terms_MP = np.concatenate([polynomial(*one.shape[:2]) for one in maps])
    colours_MC = np.concatenate([one.reshape(-1, one.shape[2]) for one in maps]).astype(np.float64)
    whole = float(np.square(colours_MC - colours_MC.mean(axis=0)).sum())
    if whole <= 1e-12:
        return 0.0
    fitted, *_ = np.linalg.lstsq(terms_MP, colours_MC, rcond=None)
    left = float(np.square(colours_MC - terms_MP @ fitted).sum())
    return float(np.clip(1 - left / whole, 0, 1))


def polynomial(rows: int, columns: int) -> np.ndarray:
    """The terms of the polynomial at each place of a map, [Y * X, P]."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    powers = [(a, b) for a in range(DEGREE + 1) for b in range(DEGREE + 1 - a)]
    return np.stack([(y**a * x**b).ravel() for a, b in powers], axis=1)
