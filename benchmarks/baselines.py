"""Is a baseline weaker than a careful person would make it? Raw pixels with few labelled films.

    python benchmarks/baselines.py DATA/cxr_pneumonia_224

Balanced accuracy on the tested patients, after training on the first 20, 40, ... films of the
training patients in an order that is drawn eight times, the mean over these: the pixels' figures as
``dino-x evaluate`` makes them, beside a pipeline of scikit-learn on the same pixels.
"""

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.data.index.index import build_index
from dino_x.data.index.labels import Labelled, load_labels
from dino_x.evaluation.baselines import pixel_encoder
from dino_x.evaluation.classify import ALL, Classification
from dino_x.evaluation.contenders import PIXELS
from dino_x.evaluation.embed import encode

COUNTS = (20, 40, 80, 160, 320, 1000)
DRAWS = 8


def main() -> None:
    warnings.simplefilter("ignore")  # scikit-learn's on what its next versions change
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="cxr_pneumonia_224")
    parser.add_argument("--draws", type=int, default=DRAWS, help="orders of the films")
    arguments = parser.parse_args()
    folder = arguments.folder
    rows = build_index([folder / "images"], verify="headers").rows
    labelled = load_labels(folder / "manifest.csv", rows, [folder / "images"])
    pixels_ND = encode({"": pixel_encoder()}, labelled.refs)[0][""]
    print("| films | linear, ours | scikit-learn | s | kNN, ours | scikit-learn | forms chosen |")
    print("|---:|---:|---:|---:|---:|---:|---|")
    for count in COUNTS:
        found = [compare(labelled, pixels_ND, count, seed) for seed in range(arguments.draws)]
        linear, plain, seconds, knn, plain_knn = np.mean([figures for figures, _ in found], axis=0)
        forms = Counter(form for _, form in found).most_common()
        shown = ", ".join(f"{form} {times}" for form, times in forms)
        print(
            f"| {count:,} | {linear:.3f} | {plain:.3f} | {seconds:.1f} | {knn:.3f}"
            f" | {plain_knn:.3f} | {shown} |", flush=True,
        )  # fmt: skip


def compare(
    labelled: Labelled, pixels_ND: np.ndarray, count: int, seed: int
) -> tuple[list[float], str]:
    """Linear here, by scikit-learn, and processor seconds of ours; kNN the same two; the form."""
    training = np.random.default_rng(seed).permutation(np.flatnonzero(labelled.is_train))
    keep = labelled.is_test.copy()
    keep[training[:count]] = True
    few = labelled.keep(keep, "not drawn")
    one, features = Classification(few, 0, [20]), pixels_ND[keep]
    started = time.process_time()
    linear = one.score("linear", PIXELS, features)[ALL]["balanced_accuracy"].value
    seconds = time.process_time() - started
    knn = next(iter(one.score("knn", PIXELS, features).values()))["balanced_accuracy"].value
    train, test = features[few.is_train], features[few.is_test]
    classes, true = one.classes_N[few.is_train], one.tested_Q
    plain = make_pipeline(
        StandardScaler(),
        LogisticRegressionCV(Cs=6, cv=3, class_weight="balanced", max_iter=500),
    ).fit(train, classes)
    neighbours = KNeighborsClassifier(min(20, len(train)), weights="distance")
    plain_knn = balanced_accuracy_score(true, neighbours.fit(train, classes).predict(test))
    plain_linear = balanced_accuracy_score(true, plain.predict(test))
    return [linear, plain_linear, seconds, knn, plain_knn], one.pixel_form["linear"]


if __name__ == "__main__":
    main()
