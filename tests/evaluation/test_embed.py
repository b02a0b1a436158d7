"""Features equal those of the model called by hand, on images prepared by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from dino_x.data.index.index import build_index
from dino_x.data.preparation import to_square
from dino_x.data.readers.registry import ImageRef, Unreadable
from dino_x.evaluation.backbone import load_backbone
from dino_x.evaluation.baselines import pixel_encoder
from dino_x.evaluation.embed import embed, encode

from .conftest import MEAN, SIZE, STD, save_tiny, write_image


def prepared_by_hand(paths, channels=1):
    batch = []
    for path in paths:
        pixels = np.asarray(Image.open(path), dtype=np.float32) / 255
        if pixels.ndim == 3 and channels == 1:
            pixels = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        film = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        batch.append((np.asarray(film)[None].repeat(channels, axis=0) - MEAN) / STD)
    return torch.tensor(np.stack(batch), dtype=torch.float32)


def embed_with(folder, refs, **more):
    backbone = load_backbone(folder, device="cpu")
    preparation = backbone.preparation
    return embed(
        backbone.model,
        refs,
        image_size=preparation.image_size,
        mean=preparation.mean,
        std=preparation.std,
        **more,
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_features_are_those_of_automodel_called_by_hand(images, tmp_path, channels, batch_size):
    save_tiny(tmp_path, channels=channels)
    refs = build_index([images], verify="headers").rows
    features = embed_with(tmp_path, refs, batch_size=batch_size)
    with torch.no_grad():
        by_hand = AutoModel.from_pretrained(tmp_path).eval()(
            pixel_values=prepared_by_hand([ref.path for ref in refs], channels)
        )
    expected = by_hand.last_hidden_state[:, 0].numpy()
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)
    assert np.abs(features[0] - features[-1]).max() > 1e-3  # or the comparison says nothing


def test_a_colour_image_becomes_grey_by_luma(tiny_model, tmp_path):
    write_image(tmp_path / "colour.png", 5, channels=3)
    features = embed_with(tiny_model, build_index([tmp_path], verify="headers").rows)
    with torch.no_grad():
        model = AutoModel.from_pretrained(tiny_model).eval()
        expected = model(pixel_values=prepared_by_hand([tmp_path / "colour.png"])).pooler_output
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-6)


def test_embedding_leaves_the_model_as_it_was(tiny_model, images):
    backbone = load_backbone(tiny_model, device="cpu")
    refs = build_index([images], verify="headers").rows[:2]
    for training in (True, False):
        backbone.model.train(training)
        embed(backbone.model, refs, image_size=SIZE, mean=[MEAN], std=[STD])
        assert backbone.model.training is training


def test_a_square_averages_instead_of_skipping_pixels():
    stripes = np.zeros((1, 64, 96), dtype=np.float32)
    stripes[:, :, ::2] = 1
    small = to_square(stripes, 1, 8)
    assert small.shape == (1, 8, 8)
    np.testing.assert_allclose(small, 0.5, atol=0.05)


def test_a_grey_image_is_repeated_for_a_model_of_three_channels():
    image = np.random.default_rng(0).random((1, 20, 30), dtype=np.float32)
    colour = to_square(image, 3, 8)
    np.testing.assert_array_equal(colour, np.repeat(to_square(image, 1, 8), 3, axis=0))


def test_each_image_is_decoded_once_for_all_encoders(images, monkeypatch):
    from dino_x.evaluation import embed as module

    decoded = []
    monkeypatch.setattr(
        module, "read", lambda ref, read=module.read: decoded.append(ref) or read(ref)
    )
    refs = build_index([images], verify="headers").rows
    encode({"one": pixel_encoder(), "two": pixel_encoder()}, refs, batch_size=7)
    assert len(decoded) == len(refs)


def test_images_that_cannot_be_decoded_are_told_by_position(images):
    refs = build_index([images], verify="headers").rows[:5]
    refs.insert(2, ImageRef(path=images / "gone.png", height=4, width=4))
    told = []
    features, unreadable = encode(
        {"pixels": pixel_encoder()}, refs, batch_size=4, progress=lambda *done: told.append(done)
    )
    assert unreadable == [2]
    assert features["pixels"].shape == (5, 1024)
    assert told == [(4, 6), (6, 6)]


def test_embed_refuses_what_cannot_be_decoded(tiny_model, images):
    refs = build_index([images], verify="headers").rows[:5]
    refs.insert(2, ImageRef(path=images / "gone.png", height=4, width=4))
    with pytest.raises(Unreadable, match="1 of 6 images"):
        embed_with(tiny_model, refs)
