"""Which images are rare: those in the emptiest parts of feature space, or a labelled class.

N images, F features.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dino_x.data.image import ImageRef
from dino_x.data.index.label_kinds import SEVERAL
from dino_x.data.index.labels import load_labels
from dino_x.errors import UserError, nearest

NEIGHBOURS = 10
SPARSEST = 0.1  # share of the images called rare where there is no label
BLOCK = 1024  # images whose similarities to all others are in memory at once


def local_density(features_NF: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """Mean cosine of each image to its nearest neighbours, itself left out, [N].

    Args:
        features_NF: L2-normalised; N of 2 or more.
        neighbours: capped at N - 1.
    """
    density = []
    for start in range(0, len(features_NF), BLOCK):
        cosines = features_NF[start : start + BLOCK] @ features_NF.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest_cosines = cosines.topk(min(neighbours, len(features_NF) - 1), dim=1).values
        density.append(nearest_cosines.mean(dim=1))
    return torch.cat(density)


def sparsest(features_NF: Tensor, share: float = SPARSEST) -> np.ndarray:
    """The ``share`` of images with the lowest local density, at least one, bool [N]."""
    count = max(1, round(share * len(features_NF)))
    order = np.argsort(local_density(features_NF).cpu().numpy(), kind="stable")
    rare = np.zeros(len(features_NF), dtype=bool)
    rare[order[:count]] = True
    return rare


def labelled_class(
    labels: str | Path,
    name: str | None,
    refs: Sequence[ImageRef],
    data_paths: Sequence[str | Path],
    label_column: str,
) -> tuple[np.ndarray, str]:
    """The images of one class, bool [N], and its name.

    Args:
        labels: ``folder``, ``column`` or a CSV file, see ``evaluation.labels.load_labels``.
        name: of the class; None is the one with the fewest images.
        refs: the N images.
        data_paths: the folders they are in.
        label_column: the column of the CSV file that holds the class.

    Raises:
        UserError: for labels that cannot be read, and for a class that is not among them.
    """
    labelled = load_labels(labels, refs, data_paths, label_column=label_column)
    if labelled.targets is not None:
        raise UserError(
            f"the column '{label_column}' holds {labelled.targets.kind}"
            f"{' labels an image' if labelled.targets.kind == SEVERAL else ''}: a rare class needs"
            " one class an image; name a column of classes with --label-column"
        )
    counts = Counter(labelled.labels.tolist())
    if name is None:
        name = min(sorted(counts), key=lambda label: counts[label])
    if name not in counts:
        raise UserError(
            f"no image has the class '{name}'{nearest(name, counts)}"
            f" (the classes: {', '.join(sorted(counts))})"
        )
    of_class = {
        (ref.path, ref.frame)
        for ref, label in zip(labelled.refs, labelled.labels, strict=True)
        if label == name
    }
    return np.array([(ref.path, ref.frame) in of_class for ref in refs]), name
