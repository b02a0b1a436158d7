"""Maps against plain implementations in float64, on odd shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from dino_x.report.galleries import where
from dino_x.report.maps import (
    Snapshot,
    cls_attention,
    nearest,
    patch_similarity,
    pca_colours,
    principal_scores,
    read_snapshots,
    share_for_half,
    turned_to,
)  # fmt: skip


@pytest.mark.parametrize(("rows", "features"), [(97, 13), (5, 31), (400, 3)])
def test_scores_are_those_of_pca(rows, features):
    values = np.random.default_rng(0).normal(size=(rows, features)) * np.arange(1, features + 1)
    expected = PCA(3, svd_solver="full").fit_transform(values)
    np.testing.assert_allclose(np.abs(principal_scores(values)), np.abs(expected), atol=1e-6)


@pytest.mark.parametrize("values", [np.ones((7, 5)), np.ones((4, 2)), np.eye(1)])
def test_directions_that_are_not_there_are_zero(values):
    scores = principal_scores(values)
    assert scores.shape == (len(values), 3)
    assert np.isfinite(scores).all()
    assert np.allclose(scores, 0)


def test_scores_are_turned_as_procrustes_says():
    rng = np.random.default_rng(2)
    scores, target = rng.normal(size=(2, 41, 3))
    turn, _ = orthogonal_procrustes(scores, target)
    np.testing.assert_allclose(turned_to(scores, target), scores @ turn, atol=1e-10)


def snapshot(step, features):
    return Snapshot(step, features, None, np.ones(len(features), np.float32))


def test_features_that_only_turned_keep_their_colours():
    """The promise of the page: the same colour over steps means the same patches."""
    rng = np.random.default_rng(3)
    last = rng.normal(size=(2, 5, 7, 11)) * np.array([9, 6, 4] + [0.5] * 8)
    turn = np.linalg.qr(rng.normal(size=(11, 11)))[0]
    first = 3 * last @ turn + 100  # turned, stretched and moved
    before, after = pca_colours([snapshot(0, first), snapshot(9, last)])
    assert after.shape == (2, 5, 7, 3)
    assert (after.min(), after.max()) == (0, 1)
    np.testing.assert_allclose(before, after, atol=1e-6)


def test_snapshots_of_other_grids_and_damaged_ones_do_no_harm(tmp_path):
    rng = np.random.default_rng(4)
    files = {}
    for step, side in ((0, 4), (5, 4), (9, 6)):
        files[step] = tmp_path / f"{step}.npz"
        features = rng.normal(size=(2, side, side, 8)).astype(np.float16)
        np.savez(files[step], features=features, aspect=np.ones(2, np.float32))
    files[5].write_bytes(files[5].read_bytes()[:300])
    files[7] = Path("/nowhere.npz")
    found = read_snapshots(files)
    assert [s.step for s in found] == [0, 9]
    assert [c.shape for c in pca_colours(found)] == [(2, 4, 4, 3), (2, 6, 6, 3)]


def test_patch_similarity_is_the_mean_over_pairs():
    grid = np.random.default_rng(5).normal(size=(3, 5, 9)) + 0.3
    rows = [row / np.linalg.norm(row) for row in grid.reshape(-1, 9)]
    pairs = [a @ b for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    assert patch_similarity(grid) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert patch_similarity(np.ones((2, 2, 3))) == pytest.approx(1)
    assert patch_similarity(np.ones((1, 1, 3))) == 1


@pytest.fixture(scope="module")
def vit():
    config = DINOv3ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        patch_size=4, num_register_tokens=3, initializer_range=0.3, layerscale_value=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DINOv3ViTModel(config).double().eval()
    model.set_attn_implementation("eager")
    return model


def noise(size):
    values = np.random.default_rng(8).normal(size=(1, 3, size, size))
    return torch.from_numpy(values)


def test_attention_is_that_of_the_cls_token_to_each_patch(vit):
    square = noise(56)
    found = cls_attention(vit, square)
    with torch.no_grad():
        weights = vit(square, output_attentions=True).attentions[-1]
    assert weights.shape[-1] == 1 + 3 + 14 * 14
    expected = np.zeros((14, 14))
    for head in range(2):
        for place in range(14 * 14):
            expected[place // 14, place % 14] += float(weights[0, head, 0, 4 + place])
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-6)


def test_a_small_image_has_a_dense_map_of_attention(vit):
    found = cls_attention(vit, noise(16))
    assert found.shape == (16, 16)
    assert found.sum() == pytest.approx(1)


def test_half_of_an_even_map_is_half_of_it():
    assert share_for_half(np.full((10, 10), 0.01)) == 0.5
    heat = np.random.default_rng(6).random((7, 9))
    total, places = 0.0, 0
    for weight in sorted(heat.ravel(), reverse=True):
        total, places = total + weight, places + 1
        if total >= heat.sum() / 2:
            break
    assert share_for_half(heat) == places / heat.size


def test_neighbours_are_those_of_a_plain_search():
    rows = np.random.default_rng(7).normal(size=(23, 5)).astype(np.float32)
    for query, found in zip((4, 0), nearest(rows, (4, 0), 3), strict=True):
        cosines = {
            other: float(rows[query] @ rows[other])
            / float(np.linalg.norm(rows[query]) * np.linalg.norm(rows[other]))
            for other in range(23)
            if other != query
        }
        expected = sorted(cosines, key=cosines.get, reverse=True)[:3]
        assert [other for other, _ in found] == expected
        assert [c for _, c in found] == pytest.approx([cosines[o] for o in expected], abs=1e-6)
    assert len(nearest(rows[:2], [0], 5)[0]) == 1


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0, 0), "at the upper left"),
        ((4, 4), "in the middle"),
        ((8, 4), "at the bottom"),
        ((0, 4), "at the top"),
        ((4, 8), "at the right"),
        ((8, 0), "at the lower left"),
    ],
)
def test_places_are_said_in_words(place, words):
    heat = np.zeros((9, 9))
    heat[place] = 1
    assert where(heat) == words
