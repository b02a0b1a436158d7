"""A model and labelled images small enough for a test."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DINOv3ViTConfig, DINOv3ViTModel

SIZE, MEAN, STD = 32, 0.4, 0.3  # of the tiny model's images


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a random DINOv3 ViT of one channel, as transformers saves it."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return folder


def save_tiny(folder: Path, seed: int = 3, channels: int = 1) -> None:
    config = DINOv3ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        patch_size=8, image_size=SIZE, num_channels=channels, num_register_tokens=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        DINOv3ViTModel(config).save_pretrained(folder)
    processor = {
        "do_resize": True, "size": {"height": SIZE, "width": SIZE}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [MEAN], "image_std": [STD],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_image(path: Path, seed: int, bright: bool = False, channels: int = 1) -> None:
    """Noise of 40 x 56 px around a level that tells the classes apart."""
    rng = np.random.default_rng(seed)
    shape = (40, 56) if channels == 1 else (40, 56, channels)
    pixels = rng.normal(150 if bright else 80, 40, shape).clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def patient_rows(patients: int = 10, images_each: int = 2) -> list[dict[str, str]]:
    """Rows for images p00_0.png and so on; odd patients are 'ill'. No split."""
    return [
        {"path": f"p{p:02d}_{i}.png", "label": "ill" if p % 2 else "well", "patient": f"Doe{p}"}
        for p in range(patients)
        for i in range(images_each)
    ]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The folder of the images of ``patient_rows()``."""
    folder = tmp_path_factory.mktemp("images")
    for seed, row in enumerate(patient_rows()):
        write_image(folder / row["path"], seed, bright=row["label"] == "ill")
    return folder
