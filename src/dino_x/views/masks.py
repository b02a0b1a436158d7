"""Block masks for iBOT, drawn for the whole effective batch at once (Bao et al. 2021, Alg. 1).

Mask ratios are spread evenly over the masked crops of the *effective* batch: drawn per
micro-batch, their spread would depend on the micro-batch.
"""

import numpy as np

ASPECT = (0.3, 1 / 0.3)  # of a block, as in BEiT and iBOT
SMALLEST_BLOCK = 4  # patches
ROUNDS = 32


def mask_counts(
    rng: np.random.Generator,
    crops: int,
    patches: int,
    probability: float,
    ratio: tuple[float, float],
) -> np.ndarray:
    """How many patches are masked in each crop: [crops] int64, 0 where a crop stays whole.

    ``round(probability * crops)`` crops are masked; their ratios are the midpoints of as many equal
    parts of ``ratio``, dealt out at random. A masked crop has at least 1 patch masked and 1 left.
    """
    masked = round(probability * crops)
    low, high = ratio
    ratios = low + (high - low) * (np.arange(masked) + 0.5) / max(masked, 1)
    counts = np.zeros(crops, dtype=np.int64)
    counts[:masked] = np.clip(np.round(ratios * patches), min(1, patches - 1), patches - 1)
    return counts[rng.permutation(crops)]


def block_masks(rng: np.random.Generator, counts: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Masks made of random rectangles, with exactly ``counts`` patches in each.

    Args:
        rng: counted generator.
        counts: [M] patches to mask in each crop, 0 to grid height * width.
        grid: patches down and across.

    Returns: bool [M, height * width]; True is masked.
    """
    height, width = grid
    rows, columns = np.arange(height), np.arange(width)
    mask = np.zeros((len(counts), height * width), dtype=bool)
    for _ in range(ROUNDS):
        draws = rng.random((4, len(counts)))
        left = counts - mask.sum(axis=1)
        if not left.any():
            return mask
        area = SMALLEST_BLOCK + draws[0] * np.maximum(left - SMALLEST_BLOCK, 0)
        aspect = np.exp(np.log(ASPECT[0]) + draws[1] * np.log(ASPECT[1] / ASPECT[0]))
        block_h = np.clip(np.round(np.sqrt(area * aspect)), 1, height).astype(np.int64)
        block_w = np.clip(np.round(np.sqrt(area / aspect)), 1, width).astype(np.int64)
        top = (draws[2] * (height - block_h + 1)).astype(np.int64)[:, None]
        start = (draws[3] * (width - block_w + 1)).astype(np.int64)[:, None]
        in_rows = (rows >= top) & (rows < top + block_h[:, None])
        in_columns = (columns >= start) & (columns < start + block_w[:, None])
        new = (in_rows[:, :, None] & in_columns[:, None, :]).reshape(len(counts), -1) & ~mask
        mask |= new & (np.cumsum(new, axis=1) <= left[:, None])  # the last block is cut to fit
    # Rarely a few are still missing: take them anywhere.
    order = np.argsort(np.where(mask, 2.0, rng.random(mask.shape)), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(height * width)[None, :], axis=1)
    return mask | (rank < (counts - mask.sum(axis=1))[:, None])
