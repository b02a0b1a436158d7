"""Segmentation: the formulas, the geometry, and a planted object that is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from dino_x.data.index.index import build_index
from dino_x.errors import UserError
from dino_x.evaluation import segmentation
from dino_x.evaluation.backbone import load_backbone
from dino_x.evaluation.bootstrap import draw_patients
from dino_x.evaluation.embed import Encoder
from dino_x.evaluation.masks import load_masks
from dino_x.evaluation.patches import GRID, class_shares, patch_encoder, pixel_patch_encoder
from dino_x.evaluation.segmentation import (
    PENALTIES,
    Counts,
    PatchClassifier,
    fit_patches,
    metrics_of_overlap,
    overlap,
    pixels_in_common,
    segment,
)

from .conftest import MEAN, STD, write_csv


def encoder_of(folder, name="model"):
    backbone = load_backbone(folder, device="cpu")
    return patch_encoder(name, backbone.model, backbone.preparation, device="cpu", precision="fp32")


@pytest.mark.parametrize(("shape", "class_count"), [((1, 1), 2), ((13, 7), 2), ((31, 45), 4)])
def test_overlap_equals_the_plain_formula(shape, class_count):
    rng = np.random.default_rng(shape[0])
    true, predicted = rng.integers(class_count, size=(2, *shape))
    dice, iou = overlap(*pixels_in_common(true, predicted, class_count))
    for c in range(1, class_count):
        a, b = true == c, predicted == c
        if (a | b).any():
            assert dice[c - 1] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-12)
            assert iou[c - 1] == pytest.approx((a & b).sum() / (a | b).sum(), abs=1e-12)


def test_what_is_nowhere_and_seen_nowhere_is_right():
    true = np.array([[0, 1], [0, 1]])
    dice, iou = overlap(*pixels_in_common(true, np.array([[0, 1], [3, 1]]), 5))
    assert dice.tolist() == [1, 1, 0, 1]  # right, absent, false alarm, absent
    assert iou.tolist() == [1, 1, 0, 1]
    assert overlap(*pixels_in_common(true, true * 0, 2))[0].tolist() == [0]  # missed


def test_shares_are_the_areas_of_the_classes_in_each_patch():
    mask = np.random.default_rng(0).integers(3, size=(2 * GRID, 3 * GRID))
    shares = class_shares(mask, 3)
    blocks = mask.reshape(GRID, 2, GRID, 3).transpose(0, 2, 1, 3).reshape(GRID * GRID, 6)
    expected = np.stack([(blocks == k).mean(axis=1) for k in range(3)], axis=1)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


@pytest.mark.parametrize("class_count", [2, 3])
def test_the_fit_is_where_the_gradient_of_the_soft_cross_entropy_is_zero(class_count):
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(301, 5)) * [1, 10, 0.1, 1, 3] + 2).astype(np.float32)
    shares = rng.dirichlet(np.ones(class_count), size=301).astype(np.float32)
    shares[:150] = np.eye(class_count)[rng.integers(class_count, size=150)]
    penalty = 0.1
    found = fit_patches(features, shares, penalty)
    logits = features.astype(np.float64) @ found.weights_DK + found.bias_K
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True) - shares
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    weights = found.weights_DK * features.std(axis=0)[:, None]
    if class_count == 2:  # one free vector, which alone is penalised
        gradient = penalty * standard.T @ error[:, 1] + weights[:, 1]
    else:
        gradient = penalty * standard.T @ error + weights
    assert np.abs(gradient).max() < 2e-2 * penalty * 301 * 0.1
    assert np.abs(error.sum(axis=0)).max() < 0.1


def test_a_class_that_no_patch_has_is_never_predicted():
    rng = np.random.default_rng(0)
    shares = np.eye(4)[rng.choice([0, 2], size=100)].astype(np.float32)
    found = fit_patches(rng.normal(size=(100, 3)).astype(np.float32), shares, 0.1)
    predicted = found.predict(rng.normal(size=(GRID * GRID, 3)).astype(np.float32), 40, 50)
    assert set(np.unique(predicted)) <= {0, 2}


def bilinear(grid, height, width):
    """The definition: pixel centers on the grid of patch centers, the border repeated."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) * GRID / height - 0.5, 0, GRID - 1)
            x = np.clip((j + 0.5) * GRID / width - 0.5, 0, GRID - 1)
            top, left = min(int(y), GRID - 2), min(int(x), GRID - 2)
            dy, dx = y - top, x - left
            out[i, j] = (
                grid[top, left] * (1 - dy) * (1 - dx) + grid[top, left + 1] * (1 - dy) * dx
                + grid[top + 1, left] * dy * (1 - dx) + grid[top + 1, left + 1] * dy * dx
            )  # fmt: skip
    return out


@pytest.mark.parametrize(("height", "width"), [(41, 67), (19, 90)])
def test_logits_are_brought_to_the_mask_bilinearly(height, width):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(GRID * GRID, 4)).astype(np.float32)
    classifier = PatchClassifier(
        rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    )
    logits = (tokens @ classifier.weights_DK + classifier.bias_K).reshape(GRID, GRID, 3)
    planes = np.stack([bilinear(logits[:, :, k], height, width) for k in range(3)])
    top_two = np.sort(planes, axis=0)
    clear = top_two[-1] - top_two[-2] > 1e-4
    found = classifier.predict(tokens, height, width)
    np.testing.assert_array_equal(found[clear], planes.argmax(axis=0)[clear])
    assert clear.mean() > 0.99


def test_patches_are_the_last_layers_without_cls_and_registers(tiny_model):
    encoder = encoder_of(tiny_model)
    assert (encoder.image_size, encoder.channels) == (GRID * 8, 1)
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = AutoModel.from_pretrained(tiny_model).eval()
        hidden = model(pixel_values=(images - MEAN) / STD).last_hidden_state
        found = encoder.features(images)
    assert hidden.shape[1] == 2 + GRID * GRID  # CLS and one register
    torch.testing.assert_close(found, hidden[:, 2:], rtol=0, atol=1e-5)


def test_models_of_other_patches_see_as_many(tmp_path):
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    shared = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "num_channels": 1,
    }  # fmt: skip
    Dinov2Model(Dinov2Config(**shared, patch_size=14, image_size=42)).save_pretrained(
        tmp_path / "dinov2"
    )
    ViTModel(ViTConfig(**shared, patch_size=4, image_size=32)).save_pretrained(tmp_path / "vit")
    assert encoder_of(tmp_path / "dinov2").image_size == 392
    assert encoder_of(tmp_path / "vit").image_size == 112  # its positions are interpolated


def test_a_model_without_patch_tokens_is_refused(tmp_path):
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, image_size=32, num_channels=1
    )
    SwinModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="gives no token for each patch"):
        encoder_of(tmp_path, "swin")


def test_pixel_patches_hold_their_pixels_and_their_place():
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    encoder = pixel_patch_encoder()
    found = encoder.features(images)
    assert found.shape == (2, GRID * GRID, 64 + 63)
    row, column = 5, 20
    patch = images[1, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    torch.testing.assert_close(found[1, row * GRID + column, :64], patch.flatten())
    place = found[:, :, 64:]
    torch.testing.assert_close(place[0], place[1])
    expected = torch.cos(torch.pi * torch.tensor((column + 0.5) / GRID))  # one half wave across
    torch.testing.assert_close(place[0, row * GRID + column, 0], expected)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Dim noise with a bright square somewhere, its mask, 10 patients of two images."""
    folder = tmp_path_factory.mktemp("squares")
    rows = []
    for number in range(20):
        rng = np.random.default_rng(number)
        pixels, mask = rng.normal(60, 10, (60, 84)), np.zeros((60, 84), dtype=np.uint8)
        top, left = rng.integers(0, 36), rng.integers(0, 60)
        pixels[top : top + 24, left : left + 24] += 120
        mask[top : top + 24, left : left + 24] = 1
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(mask).save(folder / f"mask{number}.bmp")
        side = "test" if number >= 14 else ("val" if number >= 10 else "train")
        rows.append({"path": f"{number}.png", "mask": f"mask{number}.bmp",
                     "patient": str(number // 2), "split": side})  # fmt: skip
    refs = [ref for ref in build_index([folder]).rows if ref.path.suffix == ".png"]
    return load_masks(write_csv(folder / "table.csv", rows), None, refs, [folder])


def test_a_bright_square_is_found_wherever_it_is(squares):
    calls = []
    pixels = pixel_patch_encoder()

    def counted(images):
        calls.append(len(images))
        return pixels.features(images)

    encoders = {"pixels": Encoder(224, 1, counted), "nothing": Encoder(8, 1, place_only)}
    told = []
    found = segment(
        encoders, squares, seed=0, batch_size=4, progress=lambda *done: told.append(done)
    )
    assert found.dice["pixels"].shape == (6, 1)
    assert found.dice["pixels"].min() > 0.9
    assert found.dice["nothing"].mean() < 0.5
    np.testing.assert_allclose(
        found.iou["pixels"], found.dice["pixels"] / (2 - found.dice["pixels"])
    )
    assert sum(calls) == 20  # each image went through once
    assert told[-1] == (20, 20)
    assert set(squares.patients[found.rows]) == {"7", "8", "9"}
    assert set(found.chosen) == set(encoders)
    assert set(found.chosen.values()) <= set(PENALTIES)


def place_only(images):
    """Tokens that know where they are, and nothing of the image."""
    return pixel_patch_encoder().features(torch.zeros(len(images), 1, 224, 224))


def test_the_sample_of_patches_is_bounded_and_that_of_the_seed(squares, monkeypatch):
    monkeypatch.setattr(segmentation, "MOST_PATCHES", 280)  # of 14 images
    fitted = []
    monkeypatch.setattr(
        segmentation,
        "fit_patches",
        lambda features, *rest: fitted.append(len(features)) or fit_patches(features, *rest),
    )
    encoders = {"pixels": pixel_patch_encoder()}
    first, again, other = (segment(encoders, squares, seed=seed) for seed in (0, 0, 1))
    assert set(fitted) == {200, 280}  # 20 patches of each of 10, and of 4 more
    np.testing.assert_array_equal(first.dice["pixels"], again.dice["pixels"])
    assert (first.dice["pixels"] != other.dice["pixels"]).any()


def test_the_penalty_is_that_of_the_highest_dice_on_val(squares, monkeypatch):
    """Whichever penalty alone gives a classifier that is not turned around is chosen."""
    encoders = {"pixels": pixel_patch_encoder()}
    for good in PENALTIES:

        def fit(features, shares, penalty, good=good):
            found = fit_patches(features, shares, 1e-3)
            if penalty != good:
                found = PatchClassifier(-found.weights_DK, -found.bias_K)
            return found

        monkeypatch.setattr(segmentation, "fit_patches", fit)
        assert segment(encoders, squares, seed=0).chosen == {"pixels": good}


def test_slices_of_a_volume_are_scored_together(squares):
    """A class is in some slices of a volume only: what is seen in the others is no success."""
    encoders = {"nothing": Encoder(8, 1, place_only)}
    by_image = segment(encoders, squares, seed=0)
    volumes = np.where(squares.side == "test", "one", squares.volumes)
    first = np.flatnonzero(squares.side == "test")[0]
    volumes[first] = "another"
    by_volume = segment(encoders, replace(squares, volumes=volumes), seed=0)
    assert by_image.dice["nothing"].shape == (6, 1)
    assert by_volume.dice["nothing"].shape == (2, 1)
    assert by_volume.rows.tolist() == by_image.rows[:2].tolist()
    assert by_volume.dice["nothing"][0] == by_image.dice["nothing"][0]


def test_the_dice_of_a_volume_is_that_of_all_its_pixels():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(3, size=(2, 4, 5, 6))
    true[2], predicted[2] = 0, 0  # an empty slice counts for nothing
    counts = Counts(np.array(["a", "b", "a", "a"]))
    for row in range(4):
        counts.add(row, *pixels_in_common(true[row], predicted[row], 3))
    assert counts.first_rows == [0, 1]
    whole = overlap(*pixels_in_common(true[[0, 2, 3]], predicted[[0, 2, 3]], 3))
    for found, expected in zip(counts.overlap(), whole, strict=True):
        np.testing.assert_allclose(found[0], expected)


def test_metrics_are_means_over_images_and_classes_with_draws_of_patients():
    rng = np.random.default_rng(0)
    dice = rng.random((9, 2))
    draws = draw_patients(np.array(list("aabbccdde")), 0)
    found = metrics_of_overlap(["1", "2"], {"dice": dice}, draws)
    assert list(found) == ["mean", "1", "2"]
    assert found["mean"]["dice"].value == pytest.approx(dice.mean())
    assert found["2"]["dice"].value == pytest.approx(dice[:, 1].mean())
    weights = draws.counts_RP[:, draws.patient_Q]
    expected = (weights @ dice[:, 1]) / weights.sum(axis=1)
    np.testing.assert_allclose(found["2"]["dice"].draws_R, expected)


def test_features_that_are_not_numbers_are_refused(squares):
    broken = Encoder(8, 1, lambda images: torch.full((len(images), GRID * GRID, 3), torch.nan))
    with pytest.raises(UserError, match="patch features of model are not finite"):
        segment({"model": broken}, squares, seed=0)
