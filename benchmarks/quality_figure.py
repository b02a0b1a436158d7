"""The curve of quality against images seen, from the figures of quality.py, as a picture.

    python benchmarks/quality_figure.py --out docs/images/quality.png [--figures FILE] [--set cxr]

One panel for each read-out by kNN and by a linear probe. Points are means over seeds, bars the 95%
intervals over patients; lines across are what is free: raw pixels, and frozen and random weights.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from quality import FIGURES
from quality_sets import unpacked
from quality_table import Line, Scorer

from dino_x.evaluation.bootstrap import draw_patients

matplotlib.use("Agg")
import matplotlib.pyplot as plt

READ_OUT = "cls + mean"
TASKS = {"knn": "kNN", "linear": "linear probe"}
# What is trained: the experiment, the recipe, its colour and what it is called.
SHOWN = (
    ("scratch", "256x2", "#0b6e99", "from nothing, 2 layers of 256"),
    ("continue", "continued", "#b3541e", "DINOv2-S/14, continued, exact batch of 128"),
    ("continue", "continued, 8 at a time", "#c9a227", "the same, 8 images at a time"),
)
FREE_SHOWN = {
    ("scratch", "pixels"): ("#555555", "-", "raw pixels"),
    ("scratch", "random weights"): ("#0b6e99", ":", "random weights, 2 layers of 256"),
    ("continue", "frozen"): ("#b3541e", "--", "DINOv2-S/14, frozen"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--set", default="cxr")
    parser.add_argument("--target", default="2 classes")
    parser.add_argument("--out", type=Path, required=True, help="the picture, .png")
    arguments = parser.parse_args()
    lines = [json.loads(line) for line in arguments.figures.read_text().splitlines()]
    draw(lines, arguments.set, arguments.target, arguments.out)


def draw(lines: list[Line], name: str, target: str, out: Path) -> None:
    """Both panels."""
    truth = next(line for line in lines if line.get("truth") and line["set"] == name)
    patients = np.array([str(patient) for patient in truth["patients"]])
    scorer = Scorer(draw_patients(patients, 0), unpacked(truth[target]), target)
    own = [line for line in lines if line["set"] == name and not line.get("truth")]
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.2), sharey=True, layout="constrained")
    for panel, (task, title) in zip(panels, TASKS.items(), strict=True):
        for experiment, recipe, colour, label in SHOWN:
            group = of(own, experiment, recipe)
            if group:
                trained(panel, group, task, scorer, colour, label)
        for (experiment, recipe), (colour, style, label) in FREE_SHOWN.items():
            group = of(own, experiment, recipe)
            if group:
                place = "cls" if recipe == "pixels" else READ_OUT
                value = scorer.mean(group, place, task).value
                panel.axhline(value, color=colour, linestyle=style, linewidth=1.4, label=label)
        panel.set(title=title, xscale="log", xlabel="images seen in training")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"balanced accuracy, {target}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(out, dpi=120, metadata={"Software": ""})


def trained(
    panel: Any, group: list[Line], task: str, scorer: Scorer, colour: str, label: str
) -> None:
    """The points of a recipe, by images seen."""
    seen = sorted({line["seen"] for line in group})
    metrics = [
        scorer.mean([line for line in group if line["seen"] == n], READ_OUT, task) for n in seen
    ]
    values = np.array([metric.value for metric in metrics])
    ends = np.array([metric.interval for metric in metrics]).reshape(-1, 2).T
    panel.errorbar(
        seen, values, abs(ends - values), color=colour, marker="o", capsize=3, linewidth=1.8,
        label=label,
    )  # fmt: skip


def of(lines: list[Line], experiment: str, recipe: str | None = None) -> list[Line]:
    """The lines of an experiment, or of one of its recipes."""
    own = [line for line in lines if line["experiment"] == experiment]
    return own if recipe is None else [line for line in own if line["recipe"] == recipe]


if __name__ == "__main__":
    main()
