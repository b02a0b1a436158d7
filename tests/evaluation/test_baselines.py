"""The baselines are reproducible, and learn nothing from the images they are tested on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsRegressor
from transformers import AutoConfig

from dino_x.data.index.label_kinds import Targets
from dino_x.data.index.labels import Labelled
from dino_x.evaluation.baselines import (
    component_sizes,
    pixel_forms,
    principal_components,
    random_weights,
)
from dino_x.evaluation.classify import PIXEL_COMPONENTS, Classification, forms_in_folds
from dino_x.evaluation.contenders import PIXELS
from dino_x.evaluation.knn import knn_means
from dino_x.evaluation.other_targets import OtherTargets
from dino_x.evaluation.validation import Fold
from tests.evaluation.labelled import labelled_images


def test_random_weights_are_those_of_the_seed(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    first, again, other = (random_weights(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "embeddings.patch_embeddings.weight"
    assert not torch.equal(first[name], other[name])


def test_drawing_random_weights_does_not_move_the_global_generator(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_weights(config, 7)
    assert torch.equal(torch.rand(3), expected)


def test_random_weights_are_no_straw_man_where_training_starts_from_a_small_layerscale(tiny_model):
    config = AutoConfig.from_pretrained(tiny_model)
    config.layerscale_value = 1e-5
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = random_weights(config)(pixel_values=images).pooler_output
    assert (one - other).abs().max() > 1e-3  # 1e-6 with the config's own
    assert config.layerscale_value == 1e-5


def test_principal_components_are_fitted_on_the_references_only():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 40)).astype(np.float32)
    is_reference = np.arange(60) < 45
    before = principal_components(features, is_reference, components=8)
    features[50:] = 1e3 * rng.normal(size=(10, 40))  # a fit that saw these would turn to them
    after = principal_components(features, is_reference, components=8)
    np.testing.assert_array_equal(after[:50], before[:50])


def test_principal_components_are_centered_and_ordered_by_variance():
    rng = np.random.default_rng(1)
    features = (rng.normal(size=(50, 6)) * [1, 9, 1, 4, 1, 1] + 7).astype(np.float32)
    found = principal_components(features, np.ones(50, dtype=bool), components=3)
    variances = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))[::-1][:3]
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.var(axis=0, ddof=1), variances, rtol=1e-4)


@pytest.mark.parametrize(("references", "width", "expected"), [(5, 100, 5), (30, 7, 7)])
def test_few_references_or_features_give_few_components(references, width, expected):
    features = np.random.default_rng(2).normal(size=(40, width)).astype(np.float32)
    found = principal_components(features, np.arange(40) < references)
    assert found.shape == (40, expected)


def brightness(train: int, seed: int = 0) -> tuple[Labelled, np.ndarray]:
    """Noise images of 32 x 32 px of which every second one has a brighter left half."""
    rng = np.random.default_rng(seed)
    count = train + 100
    classes = np.arange(count) % 2
    pixels = rng.normal(0.5, 0.2, (count, 32, 32)).astype(np.float32)
    pixels[:, :, :16] += 0.2 * classes[:, None, None]
    is_test = np.arange(count) >= train
    labelled = Labelled(
        refs=[None] * count, labels=np.array(["dark", "bright"])[classes], is_test=is_test,
        is_val=np.zeros(count, dtype=bool), patients=np.arange(count).astype(str),
        patients_known=True, tested="test", split_by="patient", left_out={}, warnings=[],
    )  # fmt: skip
    return labelled, pixels.reshape(count, -1)


@pytest.mark.parametrize("train", [30, 60, 128, 150, 300])
def test_pixels_tell_a_brighter_half_however_few_the_images(train):
    labelled, pixels = brightness(train)
    classification = Classification(labelled, 0, [20])
    metrics = classification.score("linear", PIXELS, pixels)["all"]
    assert metrics["balanced_accuracy"].value >= 0.97  # whitened components: 0.55 at 60


@pytest.mark.parametrize(("train", "most"), [(60, 1000), (300, 1000), (300, 100)])
def test_pixels_are_judged_in_the_form_that_does_best_on_validation(train, most, monkeypatch):
    monkeypatch.setattr("dino_x.evaluation.validation.MOST_FOLDED", most)
    labelled, pixels = brightness(train)
    classification = Classification(labelled, 0, [20])
    folds = classification.validation.folds
    assert len(folds) == (5 if most > train else 1)
    for task in ("knn", "linear"):
        classification.score(task, PIXELS, pixels)
        forms = forms_in_folds(pixels, folds, task)
        losses = {form: classification._loss_of(task)(forms[form]) for form in forms}
        assert losses[classification.pixel_form[task]] == min(losses.values())
        assert classification.described(task)["pixels"] in losses


def test_a_form_in_a_fold_is_made_from_what_is_fitted_there(monkeypatch):
    monkeypatch.setitem(PIXEL_COMPONENTS, "linear", (16, 99))
    pixels = np.random.default_rng(0).normal(size=(120, 50)).astype(np.float32)
    number = np.arange(120)
    folds = [Fold(number >= 40, number < 40), Fold(number < 90, number >= 90)]
    forms = forms_in_folds(pixels, folds, "linear")
    assert list(forms) == ["pixels", "16 components", "20 components"]
    for fold, found in zip(folds, forms["16 components"], strict=True):
        expected = principal_components(pixels, fold.fit, 16)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_there_are_never_more_components_than_a_quarter_of_the_images():
    assert component_sizes(80, (16, 64)) == [16, 20]
    assert component_sizes(63, (16, 64)) == []
    pixels = np.random.default_rng(0).normal(size=(100, 50)).astype(np.float32)
    forms = pixel_forms(pixels, np.arange(100) < 80, (16, 20))
    assert {form: values.shape[1] for form, values in forms.items()} == {
        "pixels": 50, "16 components": 16, "20 components": 20,
    }  # fmt: skip
    of_16 = principal_components(pixels, np.arange(100) < 80, 16)
    np.testing.assert_allclose(forms["16 components"], of_16, atol=1e-5)
    assert list(pixel_forms(pixels, np.arange(100) < 12, ())) == ["pixels"]


def numbers_of_strength(count=160):
    """Pictures of one pattern at a strength that is the number to be told, and a bit of noise."""
    rng = np.random.default_rng(0)
    pattern, strength = rng.normal(size=1024), rng.uniform(1, 3, count)
    pixels = strength[:, None] * pattern + rng.normal(scale=0.2, size=(count, 1024))
    number = np.arange(count)
    labelled = replace(
        labelled_images(["all"] * count, np.where(number < 100, "train", "test"), number),
        targets=Targets("numbers", ("strength",), strength[:, None]),
    )
    return labelled, pixels.astype(np.float32)


def test_neighbours_of_pixels_see_how_strong_an_image_is():
    labelled, pixels = numbers_of_strength()
    scorer = OtherTargets(labelled, labelled.targets, 0, [20])
    found = scorer.score("knn", PIXELS, pixels)["20"]["r2"].value
    train, test = labelled.is_train, labelled.is_test
    truth = labelled.targets.values_NL[:, 0]
    plain = KNeighborsRegressor(20).fit(pixels[train], truth[train])
    assert scorer.pixel_form["knn"] == "pixels by distance"
    assert found >= plain.score(pixels[test], truth[test]) - 0.02
    alone = scorer.score("knn", "model", pixels - pixels[train].mean(axis=0))["20"]["r2"].value
    assert alone < found - 0.05  # directions alone do not tell it


def test_of_several_labels_neighbours_of_pixels_are_compared_by_what_they_are_judged_by():
    rng = np.random.default_rng(5)  # the squared error would choose another form
    pixels = rng.normal(0.5, 1, size=(200, 64)).astype(np.float32)
    values = (pixels[:, :2] + rng.normal(size=(200, 2)) > 1.2).astype(float)
    labelled = replace(
        labelled_images(["all"] * 200, np.where(np.arange(200) < 140, "train", "test"), range(200)),
        targets=Targets("several", ("a", "b"), values),
    )
    scorer = OtherTargets(labelled, labelled.targets, 0, [20])
    scorer.score("knn", PIXELS, pixels)
    folds = scorer.validation.folds
    forms = forms_in_folds(pixels, folds, "knn")
    areas = {}
    for form, by_fold in forms.items():
        scores, true = [], []
        for features, fold in zip(by_fold, folds, strict=True):
            asked = features[fold.choose]
            scores += [knn_means(features[fold.fit], values[fold.fit], asked, [20])[20]]
            true += [values[fold.choose]]
        areas[form] = roc_auc_score(np.concatenate(true), np.concatenate(scores))
    assert areas[scorer.pixel_form["knn"]] == pytest.approx(max(areas.values()))
