"""The ways to train that quality.py compares, by experiment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TINY = {
    "preset": "small", "model.name": "vit-tiny", "model.width": 256, "model.depth": 2,
    "model.heads": 4, "model.channels": 1, "views.global_size": 64,
    "train.effective_batch": 64, "loss.centering": "sinkhorn",  # the momentum becomes 0.974
    "optim.lr": 0.003,  # what small had before; now half of it
}  # fmt: skip
NOW = TINY | {"optim.lr": 0.0015, "loss.queue": 384}  # as the preset try is
GO_ON = {
    "preset": "continue", "views.global_size": 70, "train.effective_batch": 128,
    "train.precision": "bf16", "loss.centering": "sinkhorn",
}  # fmt: skip


# One change each to what the preset try is.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "new weights with std 0.02": {"model.init": "normal", "head.init": "normal"},
    "teacher temperature 0.04 to 0.07": {
        "teacher.temperature_start": 0.04, "teacher.temperature": 0.07,
    },
    "momentum from 0.992, not scaled": {
        "teacher.momentum": 0.992, "teacher.momentum_batch": None,
    },
    "no queue": {"loss.queue": 0},
    "no KoLeo": {"loss.koleo_weight": 0.0},
    "4 local crops": {"views.local_crops": 4, "views.local_size": 32},
    "global crops of 0.32 to 1": {"views.global_scale": (0.32, 1.0)},
    "global crops of 0.9 to 1": {"views.global_scale": (0.9, 1.0)},
    "flips": {"views.flip": 0.5},
    "1,024 prototypes": {"head.prototypes": 1024},
    "twice the rate": {"optim.lr": 0.003},
    "half the rate": {"optim.lr": 0.00075},
    "batch of 32": {"train.effective_batch": 32, "loss.queue": 448},
    "batch of 256": {"train.effective_batch": 256, "loss.queue": 0},
    "patches of 8 px": {"model.patch_size": 8},
    "4 layers of 256": {"model.depth": 4},
    "96 px": {"views.global_size": 96},
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
FOUR_SETS = ("cxr", "cxr700", "mr", "mednist20")
_ONCE: Any = {"sets": FOUR_SETS, "seeds": (0,)}
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
        (
            *(Recipe(name, NOW | change, 30_720, **_ONCE) for name, change in CHANGES.items()),
            Recipe("four times as long", NOW, 122_880, (61_440,), **_ONCE),
        ),
        64,
        (0,),
    ),
    "preset": Experiment((Recipe("try", NOW, 61_440, sets=FOUR_SETS),), 64),
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
                61_440,
                (30_720,),
                scope=scope,
            )
            for weight in KOLEO_WEIGHTS
            for over, scope in (("over 256", None), ("over 8", 8))
        ),
        64,
    ),
}
