"""The examples of docs/fine-tuning.md run as they stand on the page, and learn something."""

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import run_page
from tests.training.runs import pretrain


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Films with a bright square or without, masks of the squares, and a tiny run on them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(36):
        film, mask = rng.normal(70, 12, (40, 48)), np.zeros((40, 48), dtype=np.uint8)
        if number % 2:
            top, left = rng.integers(0, 16, 2)
            mask[top : top + 20, left : left + 24] = 1
        film = film + 120 * mask
        for folder, pixels in (("films/" + "ab"[number % 2], film), ("masks", mask)):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(tmp_path / folder / f"{number:02d}.png")
    options = ("--effective-batch", 8, "--steps", 2, "--micro-batch", 8)
    assert pretrain("films", "runs/a", *options, model__layerscale=1.0) == 0
    return tmp_path


def test_the_page_runs_from_top_to_bottom_and_learns(here, capsys):
    pytest.importorskip("accelerate")  # the Trainer needs it
    names = run_page("fine-tuning.md")
    said = capsys.readouterr().out.splitlines()
    assert float(said[0]) == 1.0  # the probe, on patients that were held out
    assert np.mean(names["dice"]) > 0.3
    assert names["trainer"].evaluate()["eval_balanced_accuracy"] > 0.9
    assert tuple(names["own_size"].shape[1:]) == (40, 48)
    assert (here / "fine-tuned" / "classifier.pt").is_file()


def test_prepared_images_are_those_that_embed_sees(here):
    import torch

    import dino_x

    model = dino_x.load("runs/a", device="cpu")
    films, found = model.images("films/"), model.embed("films/")
    assert [image.path for image in films.images] == [image.path for image in found.images]
    with torch.no_grad():
        output = model.network(pixel_values=torch.stack([films[n] for n in range(len(films))]))
    np.testing.assert_allclose(output.pooler_output.numpy(), found.cls, atol=1e-5)
    assert model.images("films/", size=64)[0].shape == (3, 64, 64)
