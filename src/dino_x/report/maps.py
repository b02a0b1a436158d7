"""What the features see: PCA maps over the course of training, attention, nearest neighbours.

F: fixed images, Y, X: places of a map, D: features, M: places of all images together.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dino_x.model.families import registers_of
from dino_x.training.snapshots import dense_grid, shifted_squares

COLOURS = 3  # directions shown, one for each of red, green and blue
TAILS = (2, 98)  # percentiles that become the darkest and the brightest of each colour


@dataclass(frozen=True)
class Snapshot:
    """One file of RUN/snapshots.

    Attributes:
        step: finished steps.
        features_FYXD: float32.
        images_FCSS: uint8, or None where the run was told to keep no images.
        aspect_F: height / width of the images themselves.
        global_FVCSS: uint8, the global crops of a step; None but in the first snapshot.
        local_FVCSS: uint8, local crops of a step; None but in the first snapshot.
    """

    step: int
    features_FYXD: np.ndarray
    images_FCSS: np.ndarray | None
    aspect_F: np.ndarray
    global_FVCSS: np.ndarray | None = None
    local_FVCSS: np.ndarray | None = None


def read_snapshots(files: dict[int, Path]) -> list[Snapshot]:
    """The snapshots that can be read and are of the same images, by step."""
    found: list[Snapshot] = []
    for step, path in sorted(files.items()):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                features = arrays["features"].astype(np.float32)
                pixels = (arrays.get(name) for name in ("images", "global_crops", "local_crops"))
                images, global_, local = pixels
                aspect = arrays["aspect"]
                found.append(Snapshot(step, features, images, aspect, global_, local))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    usable = [s for s in found if s.features_FYXD.ndim == 4 and np.isfinite(s.features_FYXD).all()]
    if not usable:
        return []
    last = usable[-1].features_FYXD.shape
    return [
        s
        for s in usable
        if (len(s.features_FYXD), s.features_FYXD.shape[-1]) == (last[0], last[-1])
    ]


def principal_scores(rows_MD: np.ndarray, count: int = COLOURS) -> np.ndarray:
    """Coordinates along the directions in which rows differ most, [M, count].

    Rows are centred; a direction's sign is such that its largest entry is positive. With fewer
    than ``count`` directions the rest is 0.

    Source: Pearson 1901; by the eigenvectors of the covariance.
    """
    centred = rows_MD.astype(np.float64) - rows_MD.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(centred), 1))
    axes = vectors[:, ::-1][:, :count]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])])
    scores = centred @ axes
    scores[:, values[::-1][:count] <= 1e-12 * max(values[-1], 1e-300)] = 0
    return np.pad(scores, ((0, 0), (0, count - scores.shape[1])))


def turned_to(scores_MC: np.ndarray, target_MC: np.ndarray) -> np.ndarray:
    """Scores turned (rotated, mirrored, never stretched) so as to be nearest to a target.

    Source: Schoenemann 1966, the orthogonal Procrustes problem.
    """
    left, _, right = np.linalg.svd(scores_MC.T @ target_MC)
    return scores_MC @ (left @ right)


def pca_colours(snapshots: Sequence[Snapshot]) -> list[np.ndarray]:
    """Each snapshot's maps as colours in [0, 1], [F, Y, X, 3].

    At each step the three strongest directions of the patch features of all images together,
    turned so that the colours are nearest to those of the last step. The features themselves turn
    all through training, so one fixed basis would show early steps as noise. Within one step a
    colour means the same in all images.
    """
    last = snapshots[-1].features_FYXD
    target = principal_scores(last.reshape(-1, last.shape[-1]))
    colours = []
    for snapshot in snapshots:
        *places, features = snapshot.features_FYXD.shape
        scores = principal_scores(snapshot.features_FYXD.reshape(-1, features))
        if len(scores) == len(target):
            scores = turned_to(scores, target)
        low, high = np.percentile(scores, TAILS, axis=0)
        span = np.where(high > low, high - low, 1)
        middle = np.where(high > low, (scores - low) / span, 0.5)
        colours.append(np.clip(middle, 0, 1).reshape(*places, COLOURS))
    return colours


def patch_similarity(features_YXD: np.ndarray) -> float:
    """Mean cosine between two different places of one image, -1 to 1."""
    rows = features_YXD.reshape(-1, features_YXD.shape[-1]).astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count = len(rows)
    if count < 2:
        return 1.0
    return float((np.square(rows.sum(axis=0)).sum() - count) / (count * (count - 1)))


@torch.no_grad()
def cls_attention(model: nn.Module, square_1CSS: torch.Tensor) -> np.ndarray:
    """What the CLS token of the last layer attends to, mean over its heads: [Y, X], sum 1.

    Args:
        model: a transformers ViT, loaded with ``attn_implementation="eager"``.
        square_1CSS: one normalised image.
    """
    patch = int(model.config.patch_size)  # type: ignore[union-attr,arg-type]
    shifted = shifted_squares(square_1CSS, patch)
    attention = model(pixel_values=shifted, output_attentions=True).attentions[-1]
    patches = (square_1CSS.shape[-1] // patch) ** 2
    weights_BN = attention[:, :, 0, -patches:].float().mean(dim=1)
    grid = dense_grid(weights_BN[:, :, None])[..., 0].cpu().numpy()
    return grid / max(float(grid.sum()), 1e-12)


@torch.no_grad()
def token_shares(model: nn.Module, square_1CSS: torch.Tensor) -> tuple[float, float]:
    """The share of the last layer's CLS attention on CLS itself, and on all registers.

    Args: as `cls_attention`; the rest of the attention is on patches.
    """
    attention = model(pixel_values=square_1CSS, output_attentions=True).attentions[-1]
    weights_T = attention[0, :, 0].float().mean(dim=0).cpu().numpy()
    first_patch = 1 + registers_of(model.config)
    return float(weights_T[0]), float(weights_T[1:first_patch].sum())


def share_for_half(attention_YX: np.ndarray) -> float:
    """The smallest share of places that holds half of the attention: 0.5 if it is even.

    >>> share_for_half(np.array([[0.7, 0.1], [0.1, 0.1]]))
    0.25
    """
    weights = np.sort(attention_YX, axis=None)[::-1]
    reached = np.cumsum(weights) >= 0.5 * weights.sum() - 1e-12
    return (int(reached.argmax()) + 1) / weights.size


def nearest(
    features_ND: np.ndarray, queries: Sequence[int], count: int
) -> list[list[tuple[int, float]]]:
    """For each query its nearest other rows by cosine similarity, and how similar they are."""
    rows = features_ND.astype(np.float64)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    found = []
    for query in queries:
        cosine = rows @ rows[query]
        cosine[query] = -np.inf
        order = np.argsort(-cosine, kind="stable")[: min(count, len(rows) - 1)]
        found.append([(int(other), float(cosine[other])) for other in order])
    return found
