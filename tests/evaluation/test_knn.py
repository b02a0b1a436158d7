"""Weighted kNN against a plain loop, and the metrics against their definitions."""

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from dino_x.evaluation import knn
from dino_x.evaluation.knn import balanced_accuracy, knn_probabilities, knn_votes, macro_auroc


def loop_probabilities(references, classes, queries, class_count, k, temperature=0.07):
    """The definition, one query and one neighbour at a time, in float64."""
    rows = []
    for query in queries:
        cosines = [
            float(query @ reference / (np.linalg.norm(query) * np.linalg.norm(reference)))
            for reference in references
        ]
        votes = [0.0] * class_count
        for i in sorted(range(len(references)), key=lambda i: -cosines[i])[:k]:
            votes[classes[i]] += math.exp(cosines[i] / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return np.array(rows)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize(
    ("references", "queries", "width", "class_count", "k"),
    [(1, 1, 1, 2, 1), (37, 11, 5, 3, 20), (101, 53, 17, 4, 7), (8, 5, 3, 2, 20)],
)
def test_knn_equals_the_plain_loop(
    references, queries, width, class_count, k, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 3 * references)  # several chunks, the last odd
    rng = np.random.default_rng(0)
    references_ND = rng.normal(size=(references, width))
    classes_N = rng.integers(class_count, size=references)
    queries_QD = rng.normal(size=(queries, width))
    found = knn_probabilities(
        references_ND.astype(dtype), classes_N, queries_QD.astype(dtype), class_count, k=k
    )
    expected = loop_probabilities(references_ND, classes_N, queries_QD, class_count, k)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize(("references", "ks", "used"), [(60, (50, 7, 1), [1, 7, 50]),
                                                        (12, (5, 20, 50), [5, 12])])  # fmt: skip
def test_several_k_in_one_pass_are_those_of_each_k(references, ks, used):
    rng = np.random.default_rng(3)
    features, queries = rng.normal(size=(references, 6)), rng.normal(size=(17, 6))
    classes = rng.integers(3, size=references)
    found = knn_votes(features, classes, queries, 3, ks)
    assert list(found) == used
    for k, probabilities in found.items():
        expected = loop_probabilities(features, classes, queries, 3, k)
        np.testing.assert_allclose(probabilities, expected, atol=1e-12)


def test_the_length_of_a_feature_does_not_matter():
    rng = np.random.default_rng(1)
    references, queries = rng.normal(size=(30, 4)), rng.normal(size=(9, 4))
    classes = rng.integers(3, size=30)
    found = knn_probabilities(references, classes, queries, 3, k=5)
    scaled = knn_probabilities(
        references * rng.uniform(0.1, 9, (30, 1)), classes, queries * 1e-3, 3, k=5
    )
    np.testing.assert_allclose(scaled, found, atol=1e-12)


def test_far_neighbours_do_not_lead_to_division_by_zero():
    references = np.array([[-1.0, 0.0], [-1.0, 1e-3]], dtype=np.float32)
    found = knn_probabilities(
        references, np.array([0, 1]), np.array([[1.0, 0.0]], dtype=np.float32), 2, temperature=0.03
    )
    np.testing.assert_allclose(found.sum(), 1, atol=1e-6)


@pytest.mark.parametrize("broken", [{"k": 0}, {"temperature": 0.0}])
def test_values_without_a_meaning_are_refused(broken):
    with pytest.raises(ValueError, match="references, k="):
        knn_probabilities(np.eye(2), np.array([0, 1]), np.eye(2), 2, **broken)


def test_balanced_accuracy_is_the_mean_recall():
    classes = np.array([0, 0, 0, 0, 1, 1, 2])
    chosen = np.array([0, 0, 0, 1, 1, 0, 2])
    assert balanced_accuracy(classes, np.eye(3)[chosen]) == pytest.approx((0.75 + 0.5 + 1) / 3)


@pytest.mark.parametrize("class_count", [2, 3, 5])
def test_metrics_equal_those_of_scikit_learn(class_count):
    rng = np.random.default_rng(class_count)
    probabilities = rng.dirichlet(np.ones(class_count), size=83)
    classes = np.concatenate([np.arange(class_count), rng.integers(class_count, size=83)])[:83]
    accuracy = balanced_accuracy_score(classes, probabilities.argmax(axis=1))
    auroc = roc_auc_score(
        classes,
        probabilities if class_count > 2 else probabilities[:, 1],
        multi_class="ovr",
        average="macro",
    )
    assert balanced_accuracy(classes, probabilities) == pytest.approx(accuracy, abs=1e-12)
    assert macro_auroc(classes, probabilities) == pytest.approx(auroc, abs=1e-12)
