"""Is a pretrained model better than what is free? Trains, evaluates by patient, prints the tables.

    python benchmarks/quality.py --table                             # from the figures kept here
    python benchmarks/quality.py --validation                        # what recipes are chosen by
    python benchmarks/quality.py --between "continued" "continued, 8 at a time"
    python benchmarks/quality.py --data DATA --only scratch          # makes figures anew
    python benchmarks/quality.py --data DATA --only continue --weights FOLDER
    python benchmarks/quality.py --data DATA --only recipe           # one change of try each
    python benchmarks/quality.py --data DATA --only scope            # what the exact batch is worth

DATA holds the folders cxr_pneumonia_224, mri_hippocampus_nifti and mednist_9k. FOLDER is made by
trained_weights.py. Each run is one line of ``quality.jsonl`` for each of its looks, as soon as it
is done. What is there already is not run again.

Recipes are chosen on validation patients (``val``). The tables show the tested patients.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch_scope import Arm, gradients
from quality_recipes import EXPERIMENTS, Experiment, Recipe
from quality_sets import SETS, Images, packed, scores
from quality_table import print_between, print_tables, print_validation

from dino_x.config.options import Options
from dino_x.config.resolve import Facts, resolve
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.evaluation.baselines import (
    component_sizes,
    pixel_encoder,
    pixel_forms,
    random_weights,
)
from dino_x.evaluation.classify import PIXEL_COMPONENTS
from dino_x.evaluation.embed import Encoder, backbone_encoder, encode
from dino_x.machine.device import choose_device, describe_device, dtype_of
from dino_x.model.backbone import Backbone, build_backbone
from dino_x.training.optimizer import set_values
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps

FIGURES = Path(__file__).with_suffix(".jsonl")


class InMemory:
    """All canvases of the training images, decoded once for all runs."""

    def __init__(self, images: Images, options: Options, channels: int) -> None:
        share = options.views.global_scale[0]
        side = 16 * math.ceil(options.views.global_size / math.sqrt(share) / 16)
        index = images.training
        with Loader(
            index, CanvasForm(side=side, channels=channels), cache_bytes=0, workers=1
        ) as loader:
            spans = np.array_split(np.arange(len(index)), max(1, len(index) // 64))
            parts = list(loader.prefetch(spans))
        self.pixels = torch.cat([part.pixels for part in parts])
        self.aspect = torch.cat([part.aspect for part in parts])

    def prefetch(self, batches: list[np.ndarray]) -> Iterator[Canvases]:
        """Canvases for each array of image numbers."""
        for indices in batches:
            yield Canvases(self.pixels[indices], self.aspect[indices])


@cache
def images_of(name: str, data: Path) -> Images:
    return SETS[name](data)


@cache
def squares(name: str, data: Path, size: int) -> torch.Tensor:
    """All images of a set as grey squares in [0, 1], decoded once."""
    as_it_is = Encoder(size, 1, lambda images_BCSS: images_BCSS.flatten(1))
    pixels, unreadable = encode({"": as_it_is}, images_of(name, data).refs)
    assert not unreadable
    return torch.from_numpy(pixels[""]).unflatten(1, (1, size, size))


def cls(output: Any) -> torch.Tensor:
    """The CLS token after the last norm."""
    return output.pooler_output


def cls_and_mean(output: Any) -> torch.Tensor:
    """CLS and the mean patch, as DINOv2's linear evaluation has them; registers are not in it."""
    tokens = output.last_hidden_state
    return torch.cat([output.pooler_output, tokens[:, 1:].mean(dim=1)], dim=1)


def figures_of(
    network: torch.nn.Module, mean: list[float], std: list[float], size: int, name: str, data: Path
) -> dict[str, Any]:
    """The scores of a network on a set."""
    device = next(network.parameters()).device
    encoder = backbone_encoder(
        network, image_size=size, mean=mean, std=std, device=device, precision="fp32",
        read_out=both,
    )  # fmt: skip
    with torch.no_grad():
        parts = [
            encoder.features(part.expand(-1, len(mean), -1, -1))
            for part in squares(name, data, size).split(64)
        ]
    features_ND = torch.cat(parts).float().cpu().numpy()
    width = features_ND.shape[1] // 2
    images = images_of(name, data)
    return {
        "cls": scores(np.ascontiguousarray(features_ND[:, :width]), images),
        "cls + mean": scores(features_ND, images),
    }


def both(output: Any) -> torch.Tensor:
    return cls_and_mean(output)


def train(
    recipe: Recipe, name: str, seed: int, data: Path, weights: Path | None
) -> Iterator[dict[str, Any]]:
    """One run: a line of figures for each of its looks."""
    images = images_of(name, data)
    own = {"model.name": str(weights)} if recipe.weights else {}
    batch = recipe.settings["train.effective_batch"]
    steps_in_all = recipe.seen // batch
    overrides = dict(recipe.settings) | own | {
        "train.steps": steps_in_all, "train.seed": seed, "loss.floor": 1,
        "train.micro_batch": min(recipe.scope or 128, batch),
    }  # fmt: skip
    count = len(images.training)
    options = resolve(overrides, Facts(count)).options
    backbone = build_backbone(options.model, options.views.global_size, seed)
    device = choose_device("auto")
    dtype = dtype_of(options.train.precision)
    cutter = Cutter(options, backbone.mean, backbone.std, device, dtype)
    canvases = canvases_of(name, data, options, 1)
    steps = Steps(options, canvases, count, cutter, backbone)
    arm = arm_of(recipe, options)
    looks = {*(look // batch for look in recipe.looks), steps_in_all}
    started, worked = time.perf_counter(), time.process_time()
    steps.fill_queues()
    for step in range(steps_in_all):
        values = values_at(step, options)
        set_values(steps.state.optimizer, steps.student, values)
        steps.update(step, gradients(arm, steps, step, values), values)
        steps.state.done = step + 1
        if step + 1 in looks:
            spent = time.perf_counter() - started, time.process_time() - worked
            network = steps.teacher.backbone.vit
            figures = figures_of(
                network, backbone.mean, backbone.std, recipe.image_size, name, data
            )
            yield {
                "seen": (step + 1) * batch, "seconds": round(spent[0]),
                "cpu_seconds": round(spent[1]), "device": describe_device(device), **figures,
            }  # fmt: skip


def arm_of(recipe: Recipe, options: Options) -> Arm:
    """How a recipe looks at its batch."""
    batch = options.train.effective_batch
    scope = recipe.scope or batch
    return Arm(batch, str(options.loss.centering), scope, scope)


_canvases: dict[Any, InMemory] = {}


def canvases_of(name: str, data: Path, options: Options, channels: int) -> InMemory:
    """The training images of a set; those of one form at a time."""
    key = name, options.views.global_size, options.views.global_scale[0], channels
    if key not in _canvases:
        _canvases.clear()
        _canvases[key] = InMemory(images_of(name, data), options, channels)
    return _canvases[key]


def baselines(
    experiment: Experiment, name: str, data: Path, weights: Path | None
) -> Iterator[dict[str, Any]]:
    """Pixels, random weights by seed, and the weights that a recipe starts from."""
    images = images_of(name, data)
    yield {"recipe": "pixels", "seed": 0, "cls": pixel_scores(images)}
    recipe = experiment.recipes[0]
    own = {"model.name": str(weights)} if recipe.weights else {}
    options = resolve({**recipe.settings, **own}, Facts(len(images.training))).options
    backbone: Backbone = build_backbone(options.model, options.views.global_size, 0)
    size, form = experiment.image_size, (backbone.mean, backbone.std)
    if recipe.weights:
        yield {
            "recipe": "frozen", "seed": 0,
            **figures_of(backbone.vit.eval(), *form, size, name, data),
        }  # fmt: skip
    for seed in experiment.random_seeds:
        network = random_weights(backbone.vit.config, seed)
        yield {
            "recipe": "random weights", "seed": seed,
            **figures_of(network, *form, size, name, data),
        }  # fmt: skip


def pixel_scores(images: Images) -> dict[str, Any]:
    """Of raw pixels: the form whose neighbours do best on the validation patients, by target."""
    pixels = encode({"": pixel_encoder()}, images.refs)[0][""]
    train = images.split == "train"
    sizes = component_sizes(int(train.sum()), PIXEL_COMPONENTS["knn"])
    forms = pixel_forms(pixels, train, sizes, neighbours=True)
    found = scores(pixels, images)
    by_form = [scores(form, images, linear=False) for form in forms.values()]
    for key in [key for key in found["val"] if "knn" in key]:
        best = max(by_form, key=lambda one: one["val"][key])
        for side in found:
            found[side][key] = best[side][key]
    return found


def truth(name: str, data: Path) -> dict[str, Any]:
    """The classes and patients of the tested images of a set."""
    images = images_of(name, data)
    test = images.split == "test"
    numbers = np.unique(images.patients[test], return_inverse=True)[1]
    return {
        "set": name, "truth": True,
        "counts": {side: int((images.split == side).sum()) for side in np.unique(images.split)},
        "patients": [int(number) for number in numbers],
        **{target: packed(images.classes(target)[test]) for target in images.targets},
    }  # fmt: skip


@dataclass
class Figures:
    """The lines of a file, and what is in it."""

    path: Path
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.lines = [json.loads(line) for line in self.path.read_text().splitlines()]

    def has(self, **keys: Any) -> bool:
        """Whether there is a line with these values."""
        return any(all(line.get(k) == v for k, v in keys.items()) for line in self.lines)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, in the file too."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", action="store_true", help="print what --figures holds")
    parser.add_argument(
        "--validation", action="store_true", help="print what recipes are chosen by"
    )
    parser.add_argument(
        "--between", nargs=2, metavar="RECIPE", help="print one recipe minus another"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument("--weights", type=Path, help="made by trained_weights.py")
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="one experiment")
    parser.add_argument("--sets", nargs="+", choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--recipes", nargs="+", help="names of recipes")
    parser.add_argument("--until", type=int, help="end a run at the look after so many images")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = Figures(arguments.figures)
    if arguments.between:
        print_between(figures.lines, *arguments.between)
        return
    if not (arguments.table or arguments.validation):
        if arguments.data is None:
            parser.error("name the folder of the data with --data, or print figures with --table")
        for name in [arguments.only] if arguments.only else EXPERIMENTS:
            measure(name, figures, arguments)
    (print_validation if arguments.validation else print_tables)(figures.lines)


def measure(name: str, figures: Figures, arguments: argparse.Namespace) -> None:
    """Every run of an experiment that the figures do not hold yet."""
    experiment, weights = EXPERIMENTS[name], arguments.weights
    if any(recipe.weights for recipe in experiment.recipes) and weights is None:
        raise SystemExit(f"{name} needs --weights, a folder that trained_weights.py makes")
    for recipe in experiment.recipes:
        if arguments.recipes and recipe.name not in arguments.recipes:
            continue
        for set_name in arguments.sets or recipe.sets:
            if not figures.has(set=set_name, truth=True):
                figures.add(truth(set_name, arguments.data))
            if not figures.has(experiment=name, set=set_name, recipe="pixels"):
                for line in baselines(experiment, set_name, arguments.data, weights):
                    figures.add({"experiment": name, "set": set_name, **line})
            for seed in arguments.seeds or recipe.seeds:
                measure_once(name, recipe, set_name, seed, figures, arguments)


def measure_once(
    name: str,
    recipe: Recipe,
    set_name: str,
    seed: int,
    figures: Figures,
    arguments: argparse.Namespace,
) -> None:
    """One run, unless the figures hold it."""
    key = {"experiment": name, "set": set_name, "recipe": recipe.name, "seed": seed}
    if figures.has(**key):
        return
    for line in train(recipe, set_name, seed, arguments.data, arguments.weights):
        figures.add({**key, **line})
        shown = {"seen": line["seen"], "s": line["cpu_seconds"], "val": line["cls"]["val"]}
        print(json.dumps({**key, **shown}), flush=True)
        if arguments.until and line["seen"] >= arguments.until:
            return


if __name__ == "__main__":
    main()
