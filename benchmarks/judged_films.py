"""The chest films of batch_scope.py: which there are, and what features of them are worth."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.config.options import Options
from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index, build_index
from dino_x.evaluation.embed import Encoder, backbone_encoder, encode
from dino_x.evaluation.knn import knn_probabilities
from dino_x.evaluation.spectrum import rankme
from dino_x.training.step.batch_plan import Cutter

K_NEAREST = 20
PROBE_STRENGTHS = (0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Films:
    """The films of one data set: what is trained on, and what is tested with which classes."""

    train: Index
    labelled: list[ImageRef]
    classes: np.ndarray  # normal, bacteria, virus
    split: np.ndarray


@cache
def read_films(folder: Path) -> Films:
    """Films and their classes, from the manifest; splits are by patient."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    index = build_index([folder / "images"], verify="headers")
    found = [rows[str(ref.path.relative_to(folder))] for ref in index.rows]
    split = np.array([row["split"] for row in found])
    classes = np.array([row["subtype"] or row["label"].lower() for row in found])
    train = [ref for ref, side in zip(index.rows, split, strict=True) if side == "train"]
    return Films(Index(train), list(index.rows), classes, split)


def scores(features_ND: np.ndarray, films: Films) -> dict[str, Any]:
    """kNN and linear probe on the test patients, normal against pneumonia, and the rarest class."""
    train, val, test = (films.split == side for side in ("train", "val", "test"))
    ill = (films.classes != "normal").astype(int)
    names, three = np.unique(films.classes, return_inverse=True)
    rare = int(np.bincount(three[train]).argmin())
    figures = {"rankme": rankme(torch.from_numpy(features_ND[test]))}
    for name, classes in (("", ill), ("3 classes ", three)):
        votes = knn_probabilities(
            features_ND[train], classes[train], features_ND[test], classes.max() + 1, k=K_NEAREST
        )
        probe = linear_probe(features_ND, classes, train, val)
        linear = probe.predict_proba(features_ND[test])
        for method, p in (("knn", votes), ("linear", linear)):
            figures[f"{name}{method}"] = balanced_accuracy_score(classes[test], p.argmax(axis=1))
            if name:
                told = p.argmax(axis=1)
                figures[f"rare recall {method}"] = recall_score(
                    classes[test], told, labels=[rare], average="macro"
                )
                figures[f"rare auroc {method}"] = roc_auc_score(classes[test] == rare, p[:, rare])
    return {name: float(value) for name, value in figures.items()} | {"rare": str(names[rare])}


def linear_probe(
    features_ND: np.ndarray, classes: np.ndarray, train: np.ndarray, val: np.ndarray
) -> Pipeline:
    """Logistic regression on standardised features, its strength chosen on the val patients."""
    tried = []
    for strength in PROBE_STRENGTHS:
        probe = make_pipeline(
            StandardScaler(),
            LogisticRegression(C=strength, max_iter=2000, class_weight="balanced"),
        )
        told = probe.fit(features_ND[train], classes[train]).predict(features_ND[val])
        tried.append((balanced_accuracy_score(classes[val], told), probe))
    return max(tried, key=lambda one: one[0])[1]


def features_of(
    network: torch.nn.Module, options: Options, cutter: Cutter, folder: Path
) -> np.ndarray:
    """Of all labelled films, [N, D]."""
    encoder = backbone_encoder(
        network, image_size=options.views.global_size, mean=cutter.mean, std=cutter.std,
        device=cutter.device, precision=options.train.precision,
    )  # fmt: skip
    pictures = read_pictures(folder, options.views.global_size)
    with torch.no_grad():
        parts = [encoder.features(part.expand(-1, 3, -1, -1)) for part in pictures.split(256)]
    return torch.cat(parts).float().cpu().numpy()


@cache
def read_pictures(folder: Path, size: int) -> torch.Tensor:
    """All labelled films as squares in [0, 1], decoded once for all runs of a process."""
    as_it_is = Encoder(size, 1, lambda images_BCSS: images_BCSS.flatten(1))
    pixels = encode({"": as_it_is}, read_films(folder).labelled)[0][""]
    return torch.from_numpy(pixels).unflatten(1, (1, size, size))
