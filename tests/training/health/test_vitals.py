"""The numbers of a look against plain formulas in float64, on odd shapes."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from dino_x.config.presets import check
from dino_x.model.teacher import build_student
from dino_x.training.health import vitals
from dino_x.training.step.probe import Probe, ProbedRows, patch_similarity
from tests.conftest import TINY


def sample_of(images=5, bottleneck=7, prototypes=13, temperature=0.1, seed=0):
    torch.manual_seed(seed)
    rows = functional.normalize(torch.randn(2, images, bottleneck, dtype=torch.float64), dim=-1)
    features = torch.randn(2, images, 6, dtype=torch.float64)
    bias = torch.randn(prototypes, dtype=torch.float64)
    return ProbedRows(rows, bias, temperature, features, features, torch.zeros(2, images))


@pytest.mark.parametrize(("images", "prototypes"), [(1, 3), (5, 13), (33, 7)])
@pytest.mark.parametrize("rows_at_once", [1, 4, 1000])
def test_target_numbers_are_those_of_all_targets_at_once(
    monkeypatch, images, prototypes, rows_at_once
):
    monkeypatch.setattr(vitals, "working_bytes", lambda device: 8 * prototypes * rows_at_once)
    sample = sample_of(images, prototypes=prototypes)
    prototypes_KD = torch.randn(prototypes, 7, dtype=torch.float64)
    found = vitals.target_numbers(sample, prototypes_KD)
    logits = sample.teacher_bottlenecks_VSD.reshape(-1, 7).numpy() @ prototypes_KD.numpy().T / 0.1
    logits += sample.dino_bias_K.numpy()
    targets = np.exp(logits - logits.max(axis=1, keepdims=True))
    targets /= targets.sum(axis=1, keepdims=True)
    mean = targets.mean(axis=0)

    def entropy(p):
        return -sum(x * math.log(x) for x in p if x > 0)

    assert found["target_entropy"] == pytest.approx(
        np.mean([entropy(row) for row in targets]) / math.log(prototypes), rel=1e-10
    )
    assert found["mean_target_entropy"] == pytest.approx(
        entropy(mean) / math.log(prototypes), rel=1e-10
    )
    assert found["prototypes"] == pytest.approx(math.exp(entropy(mean)), rel=1e-10)
    assert found["prototypes_first"] == len(set(targets.argmax(axis=1)))


def test_targets_of_one_prototype_have_no_entropy_and_no_nan():
    """Where every other probability is 0 in floating point."""
    sample = sample_of(temperature=1e-4)
    prototypes_KD = torch.zeros(13, 7, dtype=torch.float64)
    prototypes_KD[3] = 1000 * sample.teacher_bottlenecks_VSD.mean(dim=(0, 1))
    found = vitals.target_numbers(
        sample, prototypes_KD if float(prototypes_KD[3].norm()) else prototypes_KD + 1
    )
    assert all(math.isfinite(value) for value in found.values())


def test_feature_std_is_1_in_all_directions_and_0_at_a_point():
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert vitals.feature_std(corners) == pytest.approx(1.0)
    assert vitals.feature_std(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-7)
    rows = torch.randn(31, 9, dtype=torch.float64)
    unit = (rows / rows.norm(dim=1, keepdim=True)).numpy()
    expected = math.sqrt(9) * math.sqrt((unit.std(axis=0) ** 2).mean())
    assert vitals.feature_std(rows) == pytest.approx(expected, rel=1e-10)


def test_patch_similarity_is_the_mean_over_all_pairs():
    patches = torch.randn(2, 3, 11, 5, dtype=torch.float64)
    unit = functional.normalize(patches, dim=-1)
    cosines = unit @ unit.transpose(-1, -2)
    pairs = [cosines[..., i, j] for i in range(11) for j in range(11) if i != j]
    torch.testing.assert_close(patch_similarity(patches), torch.stack(pairs).mean(dim=0))
    assert patch_similarity(patches[:, :, :1]).eq(1).all(), "a crop of one patch"


def test_neighbour_distances_are_those_of_all_pairs():
    features = torch.randn(2, 9, 4, dtype=torch.float64)
    unit = functional.normalize(features[0], dim=1)
    nearest = [min(float((a - unit[j]).norm()) for j in range(9) if j != i)
               for i, a in enumerate(unit)]  # fmt: skip
    found = vitals.neighbour_numbers(features)
    assert found["koleo_distance"] == pytest.approx(np.mean(nearest), rel=1e-10)
    assert found["koleo_nearest"] == pytest.approx(min(nearest), rel=1e-10)
    assert vitals.neighbour_numbers(features[:, :1]) == {}


@pytest.fixture
def network():
    """A tiny student whose gradients are random numbers."""
    student = build_student(check(TINY))
    torch.manual_seed(3)
    for weight in student.parameters():
        weight.grad = torch.randn_like(weight)
    return student


def test_gradient_norms_by_part_add_up_to_the_whole(network):
    whole = math.sqrt(sum(float(w.grad.square().sum()) for w in network.parameters()))
    norms = vitals.gradient_norms(network, layers=False)
    assert set(norms) == set(vitals.PARTS)
    assert math.hypot(*norms.values()) == pytest.approx(whole, rel=1e-6)
    layers = vitals.gradient_norms(network, layers=True)
    assert {"layer_00", "layer_01"} < set(layers)
    first = network.backbone.vit.model.layer[0].parameters()
    expected = math.sqrt(sum(float(w.grad.square().sum()) for w in first))
    assert layers["layer_00"] == pytest.approx(expected, rel=1e-6)
    network.zero_grad(set_to_none=True)
    assert vitals.gradient_norms(network, layers=True) == {}


def test_weights_that_are_looked_at_are_bounded_copies(network, monkeypatch):
    monkeypatch.setattr(vitals, "WEIGHTS_A_TENSOR", 10)
    before = vitals.weights_by_part(network)
    tensors = len(list(network.parameters()))
    assert sum(len(part) for part in before.values()) <= 20 * tensors
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.01)
    after = vitals.weights_by_part(network)
    for part in vitals.PARTS:
        assert vitals.relative_distance([after[part]], [before[part]]) == pytest.approx(
            0.01, rel=1e-3
        )
    assert vitals.relative_distance([torch.ones(3)], [torch.zeros(3)]) == 0


@pytest.mark.parametrize(("images", "rows", "expected"), [(16, 8, 4), (16, 512, 16), (7, 6, 3)])
def test_rows_are_spread_over_the_effective_batch(images, rows, expected):
    positions = Probe.of(images, rows).positions_S
    assert len(positions) == expected
    assert (np.unique(positions) == positions).all()
    assert positions[0] == 0
    assert positions[-1] < images
    gaps = np.diff(positions)
    assert int(gaps.max() - gaps.min()) <= 1
