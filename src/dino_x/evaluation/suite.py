"""``dino-x evaluate``: a model beside an untrained one and beside the pixels, on one split."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from dino_x.data.index import build_index
from dino_x.data.volumes import neighbours
from dino_x.errors import UserError
from dino_x.evaluation.backbone import Preparation, load_backbone
from dino_x.evaluation.baselines import pixel_encoder, principal_components, random_weights
from dino_x.evaluation.embed import Encoder, Progress, backbone_encoder, encode
from dino_x.evaluation.knn import TEMPERATURE, balanced_accuracy, knn_probabilities, macro_auroc
from dino_x.evaluation.labels import Labelled, load_labels
from dino_x.training.device import dtype_of
from dino_x.training.run import reading_of

TITLES = {"model": "model", "random": "random weights", "pixels": "raw pixels"}


def evaluate(
    model: str | Path,
    data_paths: Sequence[str | Path],
    labels: str | Path,
    *,
    label_column: str = "label",
    k: int = 20,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Weighted kNN on a model's features, on random weights' and on raw pixels'.

    Args:
        model: a run, a folder as transformers saves models, or a name on the hub.
        data_paths: files and folders of images.
        labels: ``folder`` or a CSV file, see ``labels.load_labels``.
        label_column: the column of the CSV file that holds the class.
        k: neighbours.
        device: auto, cpu or cuda.
        precision: fp32, bf16 or fp64.
        batch_size: images that go through the network together.
        seed: of the random weights.
        progress: told (images done, images in all) after each batch.

    Returns:
        What JSON can hold: ``model``, ``settings``, ``counts`` (images by split and class),
        ``patients`` (how many by split, or None), ``left_out`` (by reason), ``results``
        (``balanced_accuracy``, ``auroc`` and ``k`` for ``model``, ``random``, ``pixels``) and
        ``warnings``. No file and no patient is named in it.

    Raises:
        UserError: for a model, data or labels that cannot be used.
    """
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} {value} is less than 1")
    index = build_index(
        [Path(path) for path in data_paths], verify="headers", reading=reading_of(model)
    )
    labelled = load_labels(labels, index.rows, data_paths, label_column=label_column)
    backbone = load_backbone(model, device=device, precision=precision)
    where = next(backbone.model.parameters()).device
    untrained = random_weights(backbone.config, seed).to(where, dtype_of(precision))

    preparation = backbone.preparation
    if preparation.slices == 3:
        refused = {index.rows[row] for row in neighbours(index.rows).refused}
        usable = np.array([ref not in refused for ref in labelled.refs])
        if not usable.all():
            labelled = labelled.keep(usable, "slices of volumes that 2.5D cannot use")

    def encoder_of(network: nn.Module) -> Encoder:
        return backbone_encoder(
            network,
            image_size=preparation.image_size,
            mean=preparation.mean,
            std=preparation.std,
            device=where,
            precision=precision,
            slices=preparation.slices,
        )

    encoders = {
        "model": encoder_of(backbone.model),
        "random": encoder_of(untrained),
        "pixels": pixel_encoder(),
    }
    features, unreadable = encode(
        encoders, labelled.refs, batch_size=batch_size, progress=progress,
        windows=preparation.windows, rows=index.rows,
    )  # fmt: skip
    if unreadable:
        readable = np.ones(len(labelled.refs), dtype=bool)
        readable[unreadable] = False
        labelled = labelled.keep(readable, "images that cannot be decoded")
    features["pixels"] = principal_components(features["pixels"], ~labelled.is_test)

    return {
        "model": str(model),
        "settings": {
            "method": "weighted kNN",
            "k": k,
            "temperature": TEMPERATURE,
            "labels": "folder" if str(labels) == "folder" else Path(labels).name,
            "label_column": label_column,
            "split_by": labelled.split_by,
            "tested_split": labelled.tested,
            "image_size": preparation.image_size,
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "device": where.type,
            "precision": precision,
            "batch_size": batch_size,
            "seed": seed,
        },
        "counts": _counts(labelled),
        "patients": _patients(labelled),
        "left_out": labelled.left_out | _if_any("files that cannot be read", len(index.skipped)),
        "results": {
            name: score(features[name], labelled, k=k, name=TITLES[name]) for name in encoders
        },
        "warnings": labelled.warnings + _warn(preparation),
    }


def score(features_ND: np.ndarray, labelled: Labelled, *, k: int, name: str) -> dict[str, Any]:
    """The kNN figures of one set of features.

    Args:
        features_ND: of the images of ``labelled``, in their order.
        labelled: their classes and sides.
        k: neighbours; capped at the number of references.
        name: whose features they are, for messages.

    Raises:
        UserError: for features that are not finite.
    """
    if not np.isfinite(features_ND).all():
        raise UserError(f"the features of {name} are not finite: were the weights NaN?")
    is_test = labelled.is_test
    classes_N = np.searchsorted(labelled.classes, labelled.labels)
    probabilities = knn_probabilities(
        features_ND[~is_test],
        classes_N[~is_test],
        features_ND[is_test],
        len(labelled.classes),
        k=k,
    )
    return {
        "balanced_accuracy": balanced_accuracy(classes_N[is_test], probabilities),
        "auroc": macro_auroc(classes_N[is_test], probabilities),
        "k": min(k, int((~is_test).sum())),
    }


def _sides(labelled: Labelled) -> dict[str, np.ndarray]:
    return {"train": ~labelled.is_test, labelled.tested: labelled.is_test}


def _counts(labelled: Labelled) -> dict[str, dict[str, int]]:
    return {
        side: dict(sorted(Counter(labelled.labels[rows].tolist()).items()))
        for side, rows in _sides(labelled).items()
    }


def _patients(labelled: Labelled) -> dict[str, int] | None:
    if not labelled.patients_known:
        return None
    return {side: len(set(labelled.patients[rows])) for side, rows in _sides(labelled).items()}


def _if_any(reason: str, count: int) -> dict[str, int]:
    return {reason: count} if count else {}


def _warn(preparation: Preparation) -> list[str]:
    if preparation.stated:
        return []
    return [
        "the model has no preprocessor_config.json: its image size, mean and std are assumed"
        f" ({preparation.image_size} px, {preparation.mean}, {preparation.std})"
    ]


def print_table(result: dict[str, Any], console: Console) -> None:
    """The figures as a table, then what they mean in one line, then the warnings."""
    counts, patients = result["counts"], result["patients"]
    how = {"given": "given", "patient": "made by patient", "image": "made by image"}
    console.print(
        f"kNN, {len(counts['train'])} classes, split {how[result['settings']['split_by']]}:"
    )
    for side, images in counts.items():
        whose = f" of {patients[side]:,} patients" if patients else ""
        classes = ", ".join(f"{count:,} {label}" for label, count in images.items())
        console.print(Text(f"  {side:<5} {sum(images.values()):,} images{whose}: {classes}"))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("features")
    for column in ("balanced accuracy", "AUROC", "k"):
        table.add_column(column, justify="right")
    for name, figures in result["results"].items():
        accuracy, auroc = (f"{figures[key]:.3f}" for key in ("balanced_accuracy", "auroc"))
        table.add_row(TITLES.get(name, name), accuracy, auroc, str(figures["k"]))
    console.print(table)
    console.print(Text(f"In balanced accuracy {verdict(result['results'])}."))
    if result["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in result["left_out"].items())
        console.print(Text(f"Left out: {reasons}."))
    for warning in result["warnings"]:
        console.print(Text(f"Warning: {warning}."), style="yellow")


def verdict(results: dict[str, dict[str, Any]]) -> str:
    """A clause that says plainly what the model's balanced accuracy is worth.

    >>> accuracies = {"model": 0.75, "random": 0.5, "pixels": 0.78}
    >>> verdict({name: {"balanced_accuracy": value} for name, value in accuracies.items()})
    'the model beats random weights by 0.250, but is worse than raw pixels by 0.030'
    """
    found: dict[str, list[str]] = {"beats": [], "equals": [], "is worse than": []}
    for name, figures in results.items():
        if name == "model":
            continue
        gain = round(results["model"]["balanced_accuracy"] - figures["balanced_accuracy"], 3)
        title = TITLES.get(name, name)
        if gain == 0:
            found["equals"].append(title)
        else:
            found["beats" if gain > 0 else "is worse than"].append(f"{title} by {abs(gain):.3f}")
    clauses = [f"{verb} {' and '.join(others)}" for verb, others in found.items() if others]
    return f"the model {', but '.join(clauses)}"


def write_json(result: dict[str, Any], path: Path) -> None:
    """Writes the result, in UTF-8, whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
