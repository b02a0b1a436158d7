"""What a metric must be compared with: an untrained network, and the pixels themselves."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn
from transformers import AutoModel

from dino_x.evaluation.embed import Encoder

PIXEL_SIZE = 32
PIXEL_COMPONENTS = 64
IMAGES_A_COMPONENT = 4  # at least so many; fewer make standardised components noise of equal size
CENTERED, NOT_CENTERED, BY_DISTANCE = "pixels", "pixels not centered", "pixels by distance"
FEWEST_COMPONENTS = 16  # of fewer images, pixels are compared as they are


def random_weights(config: Any, seed: int = 0) -> nn.Module:
    """The network of a transformers config with freshly drawn weights, in evaluation mode.

    The same seed gives the same weights. The global generator of random numbers is not moved.

    LayerScale is 1, whatever the config says. At the 1e-5 that DINOv3 starts training from, the
    image does not reach the CLS token of an untrained network: on the demo's films its kNN
    balanced accuracy is 0.51, at 1 it is 0.63. The former would be a baseline that anything beats.
    """
    config = copy.deepcopy(config)
    if hasattr(config, "layerscale_value"):
        config.layerscale_value = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()


def pixel_encoder() -> Encoder:
    """Grey values of the image at 32 x 32 px: [B, 1, 32, 32] to [B, 1024]."""
    return Encoder(PIXEL_SIZE, 1, lambda images_BCSS: images_BCSS.flatten(1))


def component_sizes(references: int, sizes: Sequence[int]) -> list[int]:
    """The numbers of components that so many reference images allow, ascending."""
    most = references // IMAGES_A_COMPONENT
    return [
        size for size in sorted({min(size, most) for size in sizes}) if size >= FEWEST_COMPONENTS
    ]


def pixel_forms(
    pixels_ND: np.ndarray,
    is_reference: np.ndarray,
    sizes: Sequence[int],
    *,
    neighbours: bool = False,
) -> dict[str, np.ndarray]:
    """The forms that pixels are compared in: as they are, and as few principal components.

    Neighbours are those of the largest cosine, which looks at directions alone: of two images that
    differ in how bright or how strong they are it sees nothing. So they are also looked for among
    pixels that are not centered, and among centered ones beside a constant as long as the typical
    image, whose cosine falls with the Euclidean distance.

    A probe standardises its features. Where there are about as many components as images, all of
    them are then equally large, and the few that hold the picture are lost among those that hold
    noise. So there are never more components than a quarter of the reference images, see
    ``component_sizes``.

    Args:
        pixels_ND: of references and queries, float32.
        is_reference: [N] bool.
        sizes: numbers of components.
        neighbours: whether the forms are for nearest neighbours.

    Returns: float32 [N, components] by name. Pixels as they are come first, centered.
    """
    center_D = pixels_ND[is_reference].mean(axis=0)
    centered_ND = pixels_ND - center_D
    forms = {CENTERED: centered_ND}
    if neighbours:
        typical = np.median(np.linalg.norm(centered_ND[is_reference], axis=1))
        constant_N1 = np.full((len(pixels_ND), 1), typical, dtype=pixels_ND.dtype)
        forms[NOT_CENTERED] = pixels_ND
        forms[BY_DISTANCE] = np.concatenate([centered_ND, constant_N1], axis=1)
    if sizes:
        components_NK = principal_components(pixels_ND, is_reference, max(sizes))
        forms |= {f"{size} components": components_NK[:, :size] for size in sizes}
    return forms


def principal_components(
    features_ND: np.ndarray, is_reference: np.ndarray, components: int = PIXEL_COMPONENTS
) -> np.ndarray:
    """PCA of the features, fitted on the reference images only.

    Args:
        features_ND: of references and queries, float32.
        is_reference: [N] bool.
        components: at most this many; fewer where there are fewer references or features.

    Returns: float32 [N, components].
    """
    references = features_ND[is_reference]
    pca = PCA(min(components, *references.shape), svd_solver="full")  # exact, no random numbers
    pca.fit(references)
    return pca.transform(features_ND).astype(np.float32)
