"""Weighted k-nearest-neighbour classification, and the two metrics it is judged by.

N references, Q queries, D features, C classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

TEMPERATURE = 0.07
CHUNK_ELEMENTS = 1 << 24  # similarities held at once: 64 MB in float32


def knn_probabilities(
    references_ND: np.ndarray,
    classes_N: np.ndarray,
    queries_QD: np.ndarray,
    class_count: int,
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Each of the k nearest references votes for its class with exp(cosine / temperature).

    Args:
        references_ND: features of the reference images; they need not be normalised.
        classes_N: their classes, integers in 0 .. C - 1.
        queries_QD: features to classify.
        class_count: C.
        k: neighbours, at least 1; all references where there are fewer.
        temperature: above 0.

    Returns: [Q, C], rows that sum to 1, in the type of the features.

    Raises:
        ValueError: for no references, k < 1 or temperature <= 0.

    Source: Wu et al. 2018, section 3.4; Caron et al. 2021 (DINO), appendix F.2.

    >>> references = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> knn_probabilities(references, np.array([0, 1]), np.array([[2.0, 0.0]]), 2, k=1)
    array([[1., 0.]])
    """
    votes = knn_votes(references_ND, classes_N, queries_QD, class_count, [k], temperature)
    return next(iter(votes.values()))


def knn_votes(
    references_ND: np.ndarray,
    classes_N: np.ndarray,
    queries_QD: np.ndarray,
    class_count: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """The ``knn_probabilities`` for several k at the cost of the largest.

    Args: as there; a k that is larger than the number of references counts as that number.

    Returns: the probabilities [Q, C] by k, ascending; fewer than ``ks`` where some are the same.
    """
    one_hot_NC = np.eye(class_count, dtype=references_ND.dtype)[classes_N]
    return knn_means(references_ND, one_hot_NC, queries_QD, ks, temperature)


def knn_means(
    references_ND: np.ndarray,
    values_NL: np.ndarray,
    queries_QD: np.ndarray,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> dict[int, np.ndarray]:
    """The mean of the values of the k nearest references, weighted with exp(cosine / temperature).

    Args:
        references_ND: features of the reference images; they need not be normalised.
        values_NL: L values of each.
        queries_QD: features of the images whose values are wanted.
        ks: neighbours; a k that is larger than the number of references counts as that number.
        temperature: above 0.

    Returns: the means [Q, L] by k, ascending, in the type of the features; fewer than ``ks`` where
        some are the same.

    Raises:
        ValueError: for no references, k < 1 or temperature <= 0.
    """
    least_k = min(ks, default=0)
    if len(references_ND) == 0 or least_k < 1 or temperature <= 0:
        raise ValueError(f"{len(references_ND)} references, k={ks}, temperature={temperature}")
    references = torch.nn.functional.normalize(torch.from_numpy(references_ND), dim=1)
    queries = torch.nn.functional.normalize(torch.from_numpy(queries_QD), dim=1)
    values = torch.from_numpy(np.ascontiguousarray(values_NL)).to(references.dtype)
    used = sorted({min(k, len(references)) for k in ks})
    chunks: dict[int, list[torch.Tensor]] = {k: [] for k in used}
    chunk_size = max(1, CHUNK_ELEMENTS // len(references))
    for queries_chunk in queries.split(chunk_size):
        cosine, nearest = (queries_chunk @ references.T).topk(used[-1], dim=1)  # nearest first
        weights = ((cosine - 1) / temperature).exp()  # cosine <= 1: never overflows
        for k in used:
            share = weights[:, :k] / weights[:, :k].sum(dim=1, keepdim=True)
            chunks[k].append(torch.einsum("qk,qkl->ql", share, values[nearest[:, :k]]))
    return {k: torch.cat(found).numpy() for k, found in chunks.items()}


def balanced_accuracy(classes_Q: np.ndarray, probabilities_QC: np.ndarray) -> float:
    """The mean over classes of the share of a class's images that are recognised."""
    return float(balanced_accuracy_score(classes_Q, probabilities_QC.argmax(axis=1)))


def macro_auroc(classes_Q: np.ndarray, probabilities_QC: np.ndarray) -> float:
    """The mean over classes of the area under the ROC curve of one class against the rest."""
    class_count = probabilities_QC.shape[1]
    if class_count == 2:
        return float(roc_auc_score(classes_Q, probabilities_QC[:, 1]))
    one_hot_QC = np.eye(class_count, dtype=int)[classes_Q]
    return float(roc_auc_score(one_hot_QC, probabilities_QC, average="macro"))
