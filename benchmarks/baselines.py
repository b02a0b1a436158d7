"""Is a baseline weaker than a careful person would make it? Raw pixels with few labelled films.

    python benchmarks/baselines.py DATA/cxr_pneumonia_224

Balanced accuracy on the tested patients, after training on the first 40, 80, ... films of the
training patients in an order drawn once: the pixels' figures as ``dino-x evaluate`` makes them,
beside a pipeline of scikit-learn on the same pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.evaluation.baselines import pixel_encoder
from dino_x.evaluation.classify import ALL, Classification
from dino_x.evaluation.contenders import PIXELS
from dino_x.evaluation.embed import encode

COUNTS = (20, 40, 80, 160, 320, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="cxr_pneumonia_224")
    folder = parser.parse_args().folder
    rows = build_index([folder / "images"], verify="headers").rows
    labelled = load_labels(folder / "manifest.csv", rows, [folder / "images"])
    pixels_ND = encode({"": pixel_encoder()}, labelled.refs)[0][""]
    training = np.random.default_rng(0).permutation(np.flatnonzero(labelled.is_train))
    print(
        "| films | linear, ours | form chosen | scikit-learn | kNN, ours | form chosen | sklearn |"
    )
    print("|---:|---:|---|---:|---:|---|---:|")
    for count in COUNTS:
        keep = labelled.is_test.copy()
        keep[training[:count]] = True
        few = labelled.keep(keep, "not drawn")
        one = Classification(few, 0, [20])
        features = pixels_ND[keep]
        found = {task: one.score(task, PIXELS, features) for task in ("linear", "knn")}
        knn = next(iter(found["knn"].values()))["balanced_accuracy"].value
        linear = found["linear"][ALL]["balanced_accuracy"].value
        train, test = features[few.is_train], features[few.is_test]
        classes, true = one.classes_N[few.is_train], one.tested_Q
        plain = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(Cs=6, cv=3, class_weight="balanced", max_iter=500),
        ).fit(train, classes)
        neighbours = KNeighborsClassifier(min(20, len(train)), weights="distance")
        plain_knn = balanced_accuracy_score(true, neighbours.fit(train, classes).predict(test))
        form = one.pixel_form
        print(
            f"| {count:,} | {linear:.3f} | {form['linear']} "
            f"| {balanced_accuracy_score(true, plain.predict(test)):.3f} "
            f"| {knn:.3f} | {form['knn']} | {plain_knn:.3f} |"
        )


if __name__ == "__main__":
    main()
