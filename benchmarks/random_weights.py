"""What random weights give on the demo's films: the baseline, over networks and seeds.

    python benchmarks/random_weights.py [--seeds 5]

kNN (k = 20) and linear probe, balanced accuracy on the 700 tested films, for two and for three
classes. Nothing is trained but the probe. The networks are those of the tables in docs/.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from dino_x.config.resolve import Facts, resolve
from dino_x.data.index.index import build_index
from dino_x.data.index.labels import load_labels
from dino_x.demo import demo_folder, demo_labels
from dino_x.evaluation.baselines import random_weights
from dino_x.evaluation.classify import Classification
from dino_x.evaluation.embed import embed
from dino_x.model.backbone import new_backbone

SIDE = 64
NETWORKS = {  # options of `pretrain`
    "the demo's: width 128, 4 layers, patches of 16 px, init fan_in": {
        "preset": "small", "model.name": "vit-tiny", "model.width": 128, "model.depth": 4,
        "model.heads": 2,
    },
    "width 192, 4 layers, patches of 8 px, init as in DINOv3": {
        "preset": "dinov3", "model.name": "vit-tiny", "model.width": 192, "model.depth": 4,
        "model.heads": 3, "model.patch_size": 8,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    films = demo_folder() / "films"
    rows = build_index([films], verify="headers").rows
    console = Console(width=140)
    table = Table("network", "labels", "kNN", "linear probe", box=None)
    labelled = {
        column: load_labels(demo_labels(), rows, [films], label_column=column, with_val=True)
        for column in ("label", "subtype")
    }
    refs = labelled["label"].refs
    assert refs == labelled["subtype"].refs
    for name, settings in NETWORKS.items():
        options = resolve(settings | {"views.global_size": SIDE}, Facts(1700)).options
        config = new_backbone(options.model, SIDE).config
        mean, std = [0.5] * config.num_channels, [0.25] * config.num_channels
        found: dict[str, list[tuple[float, float]]] = {column: [] for column in labelled}
        for seed in seeds:
            network = random_weights(config, seed)
            features = embed(network, refs, image_size=SIDE, mean=mean, std=std)
            for column, values in found.items():
                scorer = Classification(labelled[column], seed, [20])
                metrics = [scorer.score(task, "random", features) for task in ("knn", "linear")]
                knn, linear = (next(iter(of.values()))["balanced_accuracy"] for of in metrics)
                values.append((knn.value, linear.value))
        for column, values in found.items():
            means, spreads = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
            cells = [f"{m:.3f} ({s:.3f})" for m, s in zip(means, spreads, strict=True)]
            table.add_row(name, column, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
