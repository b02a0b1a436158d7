"""Is a pretrained model better than what is free? Trains, evaluates by patient, prints the tables.

    python benchmarks/quality.py --table                             # from the figures kept here
    python benchmarks/quality.py --data DATA --only scratch          # makes figures anew
    python benchmarks/quality.py --data DATA --only continue --weights FOLDER
    python benchmarks/quality.py --data DATA --only recipe           # one change of small each
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch_scope import Arm, gradients
from quality_sets import SETS, Images, packed, scores
from quality_table import print_tables

from dino_x.config.options import Options
from dino_x.config.resolve import Facts, resolve
from dino_x.data.canvas.canvas import CanvasForm
from dino_x.data.loading.loader import Canvases, Loader
from dino_x.evaluation.baselines import pixel_encoder, principal_components, random_weights
from dino_x.evaluation.embed import Encoder, backbone_encoder, encode
from dino_x.machine.device import choose_device, describe_device, dtype_of
from dino_x.model.backbone import Backbone, build_backbone
from dino_x.training.optimizer import set_values
from dino_x.training.schedules import values_at
from dino_x.training.step.batch_plan import Cutter
from dino_x.training.steps import Steps

FIGURES = Path(__file__).with_suffix(".jsonl")
PIXEL_COMPONENTS = 64
TINY = {
    "preset": "small", "model.name": "vit-tiny", "model.width": 256, "model.depth": 2,
    "model.heads": 4, "model.channels": 1, "views.global_size": 64,
    "train.effective_batch": 64, "loss.centering": "sinkhorn",  # the momentum becomes 0.974
}  # fmt: skip
GO_ON = {
    "preset": "continue", "views.global_size": 70, "train.effective_batch": 128,
    "train.precision": "bf16", "loss.centering": "sinkhorn",
}  # fmt: skip


# One change each to what the preset small and its network are; the demo had the last one before.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "new weights with std 0.02": {"model.init": "normal", "head.init": "normal"},
    "teacher temperature 0.04 to 0.07": {
        "teacher.temperature_start": 0.04, "teacher.temperature": 0.07,
    },
    "momentum from 0.992, not scaled": {
        "teacher.momentum": 0.992, "teacher.momentum_batch": None,
    },
    "a queue of 384, as try has": {"loss.queue": 384},
    "no KoLeo": {"loss.koleo_weight": 0.0},
    "4 local crops": {"views.local_crops": 4, "views.local_size": 32},
    "global crops of 0.32 to 1": {"views.global_scale": (0.32, 1.0)},
    "flips": {"views.flip": 0.5},
    "1,024 prototypes": {"head.prototypes": 1024},
    "half the rate": {"optim.lr": 0.0015},
    "batch of 32": {"train.effective_batch": 32},
    "batch of 256": {"train.effective_batch": 256},
    "4 layers of 128, batch of 256": {
        "model.width": 128, "model.depth": 4, "model.heads": 2, "train.effective_batch": 256,
    },
}  # fmt: skip
SLOWER = {"teacher.momentum": 0.992, "teacher.momentum_end": 0.992}
# Schedules of small: its own falls to nothing and stops the teacher.
CONSTANT = {
    "optim.lr_end": None, "teacher.momentum_batch": None,
    "teacher.momentum": 0.974, "teacher.momentum_end": 0.974,
}  # fmt: skip
SCHEDULES: dict[str, dict[str, Any]] = {
    "to nothing": {},
    "constant": CONSTANT,
    "constant rate, teacher stops": {"optim.lr_end": None},
    "constant, slower teacher": CONSTANT | SLOWER,
    "a warmup of 384 steps, to nothing": {"optim.warmup": 384},
    "half the rate, to nothing": {"optim.lr": 0.0015},
    "a warmup of 384 steps, constant, slower teacher": CONSTANT | SLOWER | {"optim.warmup": 384},
    "half the rate, constant, slower teacher": CONSTANT | SLOWER | {"optim.lr": 0.0015},
    "a third of the rate, constant, slower teacher": CONSTANT | SLOWER | {"optim.lr": 0.001},
}  # fmt: skip
KOLEO_WEIGHTS = (0.0, 0.05, 0.2)


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    Attributes:
        name: of the row in the table.
        settings: of ``dino-x pretrain``.
        seen: images that are seen in all.
        looks: numbers of images seen at which the teacher is also evaluated.
        image_size: of the evaluation, in pixels.
        scope: images over which targets and KoLeo are computed; None for the effective batch.
        weights: whether it goes on from ``--weights``.
    """

    name: str
    settings: Mapping[str, Any]
    seen: int
    looks: tuple[int, ...] = ()
    image_size: int = 64
    scope: int | None = None
    weights: bool = False
    sets: tuple[str, ...] = ("cxr",)
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Experiment:
    """Recipes that are compared."""

    recipes: tuple[Recipe, ...]
    image_size: int
    random_seeds: tuple[int, ...] = (0, 1, 2)


LENGTHS = (30_720, 61_440, 122_880, 245_760)
_TRY = ("cxr",), (0,)
EXPERIMENTS: dict[str, Experiment] = {
    "try": Experiment(
        (
            Recipe("tiny", TINY, 1280, sets=("mednist20",)),
            Recipe("go on", GO_ON, 256, image_size=70, weights=True, sets=("mednist20",)),
        ),
        70,
        (0,),
    ),
    "scratch": Experiment(
        (
            Recipe(
                "2 layers of 256", TINY, 122_880, (30_720, 61_440), sets=("cxr", "cxr700", "mr")
            ),
            Recipe("256x2", TINY, LENGTHS[-1], LENGTHS[:-1], seeds=(0,)),
            Recipe(
                "patches of 8 px", TINY | {"model.patch_size": 8}, 61_440, (30_720,), seeds=(0,)
            ),
        ),
        64,
    ),
    "continue": Experiment(
        (
            Recipe("continued", GO_ON, 30_720, (10_240, 20_480), image_size=112, weights=True),
            Recipe(
                "continued, 8 at a time",
                GO_ON,
                30_720,
                (10_240, 20_480),
                image_size=112,
                weights=True,
                scope=8,
            ),
        ),
        112,
        (0,),
    ),
    "recipe": Experiment(
        tuple(
            Recipe(
                name, TINY | change, 30_720, sets=("cxr", "cxr700", "mr", "mednist20"), seeds=(0,)
            )
            for name, change in CHANGES.items()
        ),
        64,
        (0,),
    ),
    "schedule": Experiment(
        tuple(
            Recipe(name, TINY | change, 61_440, (30_720,), seeds=(0,))
            for name, change in SCHEDULES.items()
        ),
        64,
        (0,),
    ),
    "scope": Experiment(
        tuple(
            Recipe(
                f"{over}, KoLeo {weight:g}",
                TINY | {"train.effective_batch": 256, "loss.koleo_weight": weight},
                122_880,
                (61_440,),
                scope=scope,
            )
            for weight in KOLEO_WEIGHTS
            for over, scope in (("over 256", None), ("over 8", 8))
        ),
        64,
    ),
}


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
    pixels = encode({"": pixel_encoder()}, images.refs)[0][""]
    parts = principal_components(pixels, images.split == "train", PIXEL_COMPONENTS)
    knn, linear = scores(parts, images), scores(pixels, images)
    best = {
        side: {key: (knn if "knn" in key else linear)[side][key] for key in knn[side]}
        for side in knn
    }
    yield {"recipe": "pixels", "seed": 0, "cls": best}
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
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument("--weights", type=Path, help="made by trained_weights.py")
    parser.add_argument("--only", choices=list(EXPERIMENTS), help="one experiment")
    parser.add_argument("--sets", nargs="+", choices=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--recipes", nargs="+", help="names of recipes")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = Figures(arguments.figures)
    if not arguments.table:
        if arguments.data is None:
            parser.error("name the folder of the data with --data, or print figures with --table")
        for name in [arguments.only] if arguments.only else EXPERIMENTS:
            measure(name, figures, arguments)
    print_tables(figures.lines)


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


if __name__ == "__main__":
    main()
