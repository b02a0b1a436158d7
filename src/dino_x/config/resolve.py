"""From what the user asked for to the options of a run: the one place where they are decided.

Later wins: defaults (DINOv3), preset, what a run that is continued hands on, configuration file,
``--set``, flags. What still depends on the data is filled in last. Nobody changes options after.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dino_x.config.model_sizes import SIZES, is_size
from dino_x.config.options import ModelOptions, Options, ViewOptions
from dino_x.config.policy import Policy, centering_policy
from dino_x.config.presets import (
    FROZEN,
    GOING_ON,
    LARGER,
    ONLINE_MOST_STEPS,
    ONLINE_STEPS_AN_IMAGE,
    ONLINE_TIMES,
    PASSES,
    PASSES_OF,
    SHARES,
    SHARES_OF,
    SMALL_IMAGES,
    SOFTMAX,
    check,
    preset_values,
    stage_values,
    usual_model,
)


@dataclass(frozen=True)
class Facts:
    """What had to be looked up before options can be decided.

    Attributes:
        images: in the data set.
        inherited: what a RUN that training starts from hands on, as ``section.key`` values; it wins
            over the preset.
        patch_size: side of a patch of a model that is loaded, in pixels; None if it is not known.
    """

    images: int
    inherited: Mapping[str, Any] = field(default_factory=dict)
    patch_size: int | None = None


@dataclass(frozen=True)
class Resolved:
    """Every option with its final value, and why.

    Attributes:
        options: of the run; the micro-batch may still be ``auto``.
        preset: a line that says which preset it is and why.
        policy: what the effective batch means for centering and KoLeo.
    """

    options: Options
    preset: str
    policy: Policy


def resolve(overrides: Mapping[str, Any], facts: Facts) -> Resolved:
    """Decide every option.

    Args:
        overrides: what the user set, as ``section.key`` values.
        facts: what was looked up.

    Raises: UserError naming the first option that is unknown or wrong, and for an effective batch
        that the user wants refused.
    """
    preset, why = choose_preset(check(overrides), facts.images)
    model = str(overrides.get("model.name", usual_model(preset)))
    base = preset_values(preset, model, facts.images)
    kept_by_preset = stage_values(preset, facts.images)
    base |= {name: v for name, v in facts.inherited.items() if name not in kept_by_preset}
    if preset == "highres":
        before = check({**base, **overrides})
        base |= larger_crops(before.views, facts.patch_size or patch_size_of(before.model))
    options = check({**base, **overrides, "preset": preset})
    options = with_values(options, found_values(options, facts))
    policy = centering_policy(options.loss, options.train.effective_batch)
    decided = {
        "loss.centering": policy.centering,
        "loss.koleo_weight": policy.koleo_weight,
        "loss.queue": policy.queue,
    }
    if policy.centering == "softmax":
        asked = overrides.keys() | facts.inherited.keys()
        decided |= {name: value for name, value in SOFTMAX.items() if name not in asked}
    return Resolved(with_values(options, decided), f"preset {preset}, {why}", policy)


def found_values(options: Options, facts: Facts) -> dict[str, Any]:
    """What was left open, from the number of images and of steps, as ``section.key`` values."""
    train, preset = options.train, options.preset
    heads_from = options.model.heads_from
    if heads_from == "auto":
        heads_from = facts.inherited.get("model.heads_from", "new")
    passes = PASSES_OF.get(preset, PASSES)
    steps = train.steps or max(1, math.ceil(passes * facts.images / train.effective_batch))
    new_heads = preset in GOING_ON and heads_from != "run"
    shares = SHARES | SHARES_OF.get(preset, {})
    found = {
        **{name: round(share * steps) for name, share in shares.items()},
        "optim.freeze_backbone": round(FROZEN * steps) if new_heads else 0,
        "online.every": online_every(options, steps, facts.images),
    }
    left_open = {name: value for name, value in found.items() if value_of(options, name) is None}
    return left_open | {"model.heads_from": heads_from, "train.steps": steps}


def online_every(options: Options, steps: int, images: int) -> int:
    """Steps between two evaluations while training, so that they cost little."""
    often = min(math.ceil(steps / ONLINE_TIMES), ONLINE_MOST_STEPS)
    looked_at = min(options.online.images, images)
    cheap = math.ceil(ONLINE_STEPS_AN_IMAGE * looked_at / options.train.effective_batch)
    return max(often, cheap)


def value_of(options: Options, name: str) -> Any:
    """The value of ``section.key``."""
    section, _, key = name.partition(".")
    return getattr(getattr(options, section), key)


def with_values(options: Options, values: Mapping[str, Any]) -> Options:
    """The same options with other values, given as ``section.key``; they are not checked again."""
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        by_section.setdefault(section, {})[key] = value
    changed = {
        section: getattr(options, section).model_copy(update=keys)
        for section, keys in by_section.items()
    }
    return options.model_copy(update=changed)


def choose_preset(options: Options, images: int) -> tuple[str, str]:
    """The preset and why; for ``auto`` by model and number of images."""
    if options.preset != "auto":
        return options.preset, "as chosen"
    if not is_size(options.model.name):
        return "continue", "for a model that is loaded"
    if options.model.name == "vit-tiny":
        return "small", "for vit-tiny"
    if images < SMALL_IMAGES:
        return "small", f"for {images:,} images, fewer than {SMALL_IMAGES:,}"
    return "dinov3", f"for {images:,} images and {options.model.name}"


def patch_size_of(model: ModelOptions) -> int:
    """Side of a patch as far as the options say it; else DINOv3's."""
    return model.patch_size or SIZES.get(model.name, SIZES["vitl16"])[3]


def larger_crops(views: ViewOptions, patch_size: int) -> dict[str, Any]:
    """Crop sizes of the high-resolution stage, from those of the stage before.

    Each is DINOv3's multiple, and at most half a patch less: a whole number of patches.
    """

    def larger(size: int, times: float) -> int:
        return max(1, int(size * times) // patch_size) * patch_size

    sets: dict[tuple[int, ...], float] = {}
    for global_, local, gram, share in LARGER:
        local = local if views.local_crops else 1  # where there are none, sets become one
        key = (
            larger(views.global_size, global_),
            larger(views.local_size, local),
            larger(views.global_size, gram),
        )
        sets[key] = sets.get(key, 0) + share
    names = ("global_size", "local_size", "gram_size", "weight")
    return {
        "views.global_size": 2 * views.global_size,
        "views.sizes": [
            dict(zip(names, (*key, round(share, 3)), strict=True)) for key, share in sets.items()
        ],
    }
