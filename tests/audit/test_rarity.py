"""Which images count as rare."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from dino_x.audit.rarity import labelled_class, local_density, sparsest
from dino_x.data.index.index import build_index
from dino_x.errors import UserError
from tests.evaluation.conftest import images, patient_rows, write_csv  # noqa: F401


def features(common=90, planted=10):
    """Dense clouds, and images far from everything at known places."""
    draw = torch.Generator().manual_seed(1)
    clouds = torch.randn(3, 40, generator=draw)[torch.arange(common) % 3]
    rows = clouds + 0.1 * torch.randn(common, 40, generator=draw)
    lonely = torch.randn(planted, 40, generator=draw)
    order = torch.randperm(common + planted, generator=draw)
    return functional.normalize(torch.cat([rows, lonely])[order], dim=1), order.numpy() >= common


def test_planted_outliers_are_the_sparsest_tenth():
    rows, planted = features()
    np.testing.assert_array_equal(sparsest(rows), planted)


def test_density_is_the_mean_cosine_to_the_nearest_others():
    rows, _ = features()
    rows = rows.double()
    expected = []
    for i in range(len(rows)):
        cosines = sorted(float(rows[i] @ rows[j]) for j in range(len(rows)) if j != i)
        expected.append(np.mean(cosines[-10:]))
    np.testing.assert_allclose(local_density(rows), expected, rtol=1e-12)


def test_density_does_not_depend_on_the_blocks(monkeypatch):
    rows, _ = features()
    whole = local_density(rows)
    monkeypatch.setattr("dino_x.audit.rarity.BLOCK", 7)
    torch.testing.assert_close(local_density(rows), whole)


def test_fewer_images_than_neighbours():
    assert sparsest(features(common=6, planted=2)[0]).sum() == 1


@pytest.fixture
def labels(images, tmp_path):  # noqa: F811
    rows = patient_rows()
    for row in rows[:4]:
        row["label"] = "odd"
    for row, split in zip(rows, ["train", "test"] * len(rows), strict=False):
        row["split"], row["patient"] = split, ""
    return write_csv(tmp_path / "labels.csv", rows)


def test_a_labelled_class_by_name_and_by_default_the_smallest(images, labels):  # noqa: F811
    refs = build_index([images]).rows
    rare, name = labelled_class(labels, None, refs, [images], "label")
    assert name == "odd"
    assert [ref.path.name for ref, is_rare in zip(refs, rare, strict=True) if is_rare] == [
        "p00_0.png", "p00_1.png", "p01_0.png", "p01_1.png",
    ]  # fmt: skip
    rare, name = labelled_class(labels, "ill", refs, [images], "label")
    assert (name, rare.sum()) == ("ill", 8)


def test_an_unknown_class_is_refused_with_the_nearest(images, labels):  # noqa: F811
    refs = build_index([images]).rows
    with pytest.raises(UserError, match="no image has the class 'il'; did you mean 'ill'"):
        labelled_class(labels, "il", refs, [images], "label")
