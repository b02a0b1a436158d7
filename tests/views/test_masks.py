import numpy as np
import pytest

from dino_x.randomness import generator
from dino_x.views.masks import block_masks, mask_counts


def test_counts_spread_the_ratios_evenly_over_the_effective_batch():
    counts = mask_counts(generator(0, 0, "masks"), 128, 196, 0.5, (0.1, 0.5))
    masked = np.sort(counts[counts > 0])
    assert len(masked) == 64
    np.testing.assert_allclose(masked / 196, np.linspace(0.1, 0.5, 129)[1::2], atol=0.5 / 196)


@pytest.mark.parametrize(
    ("crops", "patches", "probability", "masked"),
    [(1, 4, 0.5, 0), (3, 4, 1.0, 3), (8, 9, 0.0, 0), (2, 1, 1.0, 2)],
)
def test_counts_on_odd_sizes(crops, patches, probability, masked):
    counts = mask_counts(generator(1, 2, "masks"), crops, patches, probability, (0.1, 0.5))
    assert counts.shape == (crops,)
    assert (counts < patches).all()
    assert (counts > 0).sum() == (masked if patches > 1 else 0)


@pytest.mark.parametrize("grid", [(14, 14), (4, 7), (1, 5), (1, 1)])
def test_masks_have_exactly_the_count(grid):
    patches = grid[0] * grid[1]
    counts = np.arange(50) % (patches + 1)
    masks = block_masks(generator(0, 3, "masks"), counts, grid)
    assert masks.shape == (50, patches)
    np.testing.assert_array_equal(masks.sum(axis=1), counts)


def test_masks_are_blocks():
    """Masked patches have far more masked neighbours than if they were taken singly."""
    counts = np.full(200, 60)
    masks = block_masks(generator(0, 0, "masks"), counts, (14, 14)).reshape(-1, 14, 14)
    all_or_none = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, 1:].sum()
    assert all_or_none > 0.7  # 0.31 at random


def test_masks_cover_every_place():
    masks = block_masks(generator(0, 1, "masks"), np.full(500, 60), (14, 14))
    share = masks.mean(axis=0)
    assert share.mean() == pytest.approx(60 / 196)
    assert share.min() > 0.01  # corners are rare, as wherever blocks lie inside the image
    assert share.max() < 0.6
