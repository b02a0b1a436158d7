"""A run small enough for a test, and images made on the spot; benchmarks use them, too."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

# transformers 5.17 draws the first weights of a network in another order, and its image processors
# need torchvision; what was kept or measured with a later one does not hold with it.
OLD_TRANSFORMERS = tuple(map(int, version("transformers").split(".")[:2])) < (5, 20)
NO_PROCESSOR = OLD_TRANSFORMERS and find_spec("torchvision") is None

TINY = {  # a network and crops small enough for a test; every other option keeps its default
    "model.name": "vit-tiny", "model.width": 32, "model.depth": 2, "model.heads": 2,
    "model.patch_size": 8, "head.prototypes": 61, "head.hidden": 48, "head.bottleneck": 24,
    "views.global_size": 32, "views.local_size": 16, "views.local_crops": 3,
    "optim.warmup": 2, "preset": "dinov3", "report.page": False,
    "loss.on_small_batch": "fallback",  # a queue would be filled before the first step of each run
}  # fmt: skip


def image_processor(folder, **settings):
    """transformers' image processor of a folder, or the test is skipped if it cannot be had.

    transformers 5.17 has none without torchvision.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, **settings)
    except ImportError as error:
        import pytest

        pytest.skip(str(error).strip().splitlines()[0])


def tiny_settings(**more: object) -> list[str]:
    """``--set`` values of the tiny run; ``section__key=value`` adds or replaces."""
    values = TINY | {name.replace("__", "."): value for name, value in more.items()}
    return ["--set", *(f"{name}={value}" for name, value in values.items())]


def draw_film(rng: np.random.Generator, height: int = 40, width: int = 48) -> np.ndarray:
    """A grey picture with a bright ellipse and a few bars on noise, uint8 [H, W]."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    cy, cx, ry, rx = rng.uniform(0.2, 0.7, 4)
    film = 60 + 120 * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1)
    film = film + 30 * np.sin(rng.uniform(10, 60) * x + rng.uniform(0, 6))
    return np.clip(film + rng.normal(0, 8, film.shape), 0, 255).astype(np.uint8)


def make_films(folder: Path) -> Path:
    """Write 40 PNG files in two subfolders."""
    rng = np.random.default_rng(7)
    for number in range(40):
        place = folder / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_film(rng)).save(place / f"{number:03d}.png")
    return folder
