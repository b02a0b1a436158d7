"""The image sets of quality.py, with classes, patients and splits, and what features of them score.

N images, Q tested images, D features, C classes.
"""

import base64
import csv
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from dino_x.data.image import ImageRef
from dino_x.data.index.index import Index, build_index
from dino_x.evaluation.knn import balanced_accuracy, knn_probabilities
from dino_x.evaluation.linear import linear_probabilities
from dino_x.evaluation.validation import Fold, Validation
from dino_x.randomness import generator

K_NEAREST = 20
SPLITS = ("train", "val", "test")
SHARES = (0.7, 0.1, 0.2)
FEW_FILMS = 700
FEW_OF_A_CLASS = 20
INNER_SHARE = 0.2  # of the training patients, to choose a penalty on when val is what is judged
SLICES = np.array(["none", "anterior", "posterior", "both"])  # parts of the hippocampus in a slice


@dataclass(frozen=True)
class Images:
    """One set of images.

    Attributes:
        name: of the set.
        refs: N images.
        targets: by name, [N] class names.
        patients: [N] names of patients.
        split: [N] train, val or test; no patient is in two of them.
    """

    name: str
    refs: list[ImageRef]
    targets: dict[str, np.ndarray]
    patients: np.ndarray
    split: np.ndarray

    @property
    def training(self) -> Index:
        """The images that are trained on."""
        return Index(
            [ref for ref, side in zip(self.refs, self.split, strict=True) if side == "train"]
        )

    def classes(self, target: str) -> np.ndarray:
        """Classes as numbers, [N]."""
        return np.unique(self.targets[target], return_inverse=True)[1]

    def only(self, keep: np.ndarray, name: str) -> "Images":
        """A part of the set, [N] bool."""
        refs = [ref for ref, kept in zip(self.refs, keep, strict=True) if kept]
        targets = {target: classes[keep] for target, classes in self.targets.items()}
        return Images(name, refs, targets, self.patients[keep], self.split[keep])


def chest_films(data: Path) -> Images:
    """Children's chest films: normal or pneumonia, and of which kind."""
    folder = data / "cxr_pneumonia_224"
    with (folder / "manifest.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    refs = list(build_index([folder / "images"], verify="headers").rows)
    found = [rows[str(ref.path.relative_to(folder))] for ref in refs]
    targets = {
        "2 classes": np.array([row["label"].lower() for row in found]),
        "3 classes": np.array([row["subtype"] or row["label"].lower() for row in found]),
    }
    patients = np.array([row["patient"] for row in found])
    return Images("cxr", refs, targets, patients, np.array([row["split"] for row in found]))


def few_chest_films(data: Path) -> Images:
    """The same, with 700 films to train on; tested on the same patients."""
    films = chest_films(data)
    training = np.flatnonzero(films.split == "train")
    order = np.random.default_rng(0).permutation(np.unique(films.patients[training]))
    rank = {patient: place for place, patient in enumerate(order)}
    first = sorted(training, key=lambda row: rank[films.patients[row]])[:FEW_FILMS]
    keep = films.split != "train"
    keep[first] = True
    return films.only(keep, "cxr700")


def mr_slices(data: Path) -> Images:
    """MR slices around the hippocampus: which of its two parts a slice shows."""
    folder = data / "mri_hippocampus_nifti"
    refs = list(build_index([folder / "images"], verify="headers").rows)
    masks: dict[Path, np.ndarray] = {}
    classes = []
    for ref in refs:
        if ref.path not in masks:
            masks[ref.path] = mask_of(folder / "labels" / ref.path.name)
        parts = masks[ref.path][:, :, ref.frame]
        classes.append(SLICES[(parts == 1).any() + 2 * (parts == 2).any()])
    patients = np.array([ref.path.name for ref in refs])
    return Images("mr", refs, {"4 classes": np.array(classes)}, patients, split_of(patients))


def mask_of(path: Path) -> np.ndarray:
    """The numbers of a volume of labels, as they are stored."""
    volume: Any = nibabel.load(path)
    return np.asarray(volume.dataobj)


def few_mixed(data: Path) -> Images:
    """Small images of six kinds, 20 of each to train on."""
    folder = data / "mednist_9k"
    refs = [
        ref for ref in build_index([folder], verify="headers").rows if ref.path.suffix != ".csv"
    ]
    names = np.array([ref.path.parent.name for ref in refs])
    patients = np.array([str(ref.path.relative_to(folder)) for ref in refs])
    split = np.full(len(refs), "", dtype="<U5")
    for name in np.unique(names):
        rows = np.random.default_rng(0).permutation(np.flatnonzero(names == name))
        split[rows[:FEW_OF_A_CLASS]] = "train"
        split[rows[FEW_OF_A_CLASS : 5 * FEW_OF_A_CLASS]] = "val"
        split[rows[5 * FEW_OF_A_CLASS : 15 * FEW_OF_A_CLASS]] = "test"
    return Images("mednist20", refs, {"6 classes": names}, patients, split).only(
        split != "", "mednist20"
    )


SETS: dict[str, Callable[[Path], Images]] = {
    "cxr": chest_films,
    "cxr700": few_chest_films,
    "mr": mr_slices,
    "mednist20": few_mixed,
}


def split_of(patients: np.ndarray) -> np.ndarray:
    """train, val or test by patient, in the shares 70, 10 and 20%."""
    names = np.random.default_rng(0).permutation(np.unique(patients))
    edges = np.cumsum(SHARES)[:-1] * len(names)
    side = {name: SPLITS[int(np.searchsorted(edges, at, "right"))] for at, name in enumerate(names)}
    return np.array([side[name] for name in patients.tolist()])


def scores(features_ND: np.ndarray, images: Images, *, linear: bool = True) -> dict[str, Any]:
    """kNN and, if asked for, linear probe, by target and task.

    Returns: ``val``, balanced accuracy on the validation patients, to choose recipes on, and
        ``test``, the predicted class of each tested image as ``packed`` text.
    """
    train, val, test = (images.split == side for side in SPLITS)
    inner = inner_validation(images)
    found: dict[str, Any] = {"val": {}, "test": {}}
    for target in images.targets:
        classes_N = images.classes(target)

        on_val = {"knn": neighbours(features_ND, classes_N, train, val)}
        on_test = {"knn": neighbours(features_ND, classes_N, train, test)}
        if linear:
            given = Validation((Fold(train, val),), train | val, "given")
            on_val["linear"] = linear_probabilities(features_ND, classes_N, inner, val)[0]
            on_test["linear"] = linear_probabilities(features_ND, classes_N, given, test)[0]
        for task, probabilities in on_val.items():
            score = balanced_accuracy(classes_N[val], probabilities)
            found["val"][f"{target}, {task}"] = round(score, 5)
        for task, probabilities in on_test.items():
            found["test"][f"{target}, {task}"] = packed(probabilities.argmax(axis=1))
    return found


def neighbours(
    features_ND: np.ndarray, classes_N: np.ndarray, train: np.ndarray, queries: np.ndarray
) -> np.ndarray:
    """The votes of the nearest training images, [Q, C]."""
    count = int(classes_N.max()) + 1
    return knn_probabilities(
        features_ND[train], classes_N[train], features_ND[queries], count, k=K_NEAREST
    )


def inner_validation(images: Images) -> Validation:
    """A part of the training patients to choose on, so that val can be judged."""
    train = images.split == "train"
    names = np.unique(images.patients[train])
    drawn = generator(0, 0, "inner validation").permutation(names)
    held = set(drawn[: int(INNER_SHARE * len(names))].tolist())
    choose = train & np.array([name in held for name in images.patients.tolist()])
    return Validation((Fold(train & ~choose, choose),), train, "patient")


def packed(classes_Q: np.ndarray) -> str:
    """Class numbers as short text."""
    return base64.b64encode(zlib.compress(classes_Q.astype(np.uint8).tobytes(), 9)).decode()


def unpacked(text: str) -> np.ndarray:
    """The opposite of ``packed``."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
