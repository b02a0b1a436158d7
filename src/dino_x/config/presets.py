"""Presets, and reading options: from files, from the command line, with their checks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from dino_x.config.model_sizes import is_size
from dino_x.config.options import FREE_ON_RESUME, Options
from dino_x.config.other_names import hint
from dino_x.config.yaml_files import KeyTwiceError, load_yaml
from dino_x.errors import UserError, nearest
from dino_x.files import read_text

SMALL_IMAGES = 100_000  # below this many images, auto is the small preset
ONLINE_TIMES = 10  # a run is evaluated while it trains, where online.every is not given,
ONLINE_MOST_STEPS = 1000  # but in a long one at least this often,
# and in a short one so seldom that its views are at most 1 in 20 of what a step's two global views
# cost an image: a forward of the teacher and about three of the student's (forward and backward).
ONLINE_STEPS_AN_IMAGE = 5
PASSES = 100  # over the images, where the number of steps is not given

# Set by measurement; see docs/recipes.md for what each is worth.
SMALL: dict[str, Any] = {
    "model.init": "fan_in",
    "model.layerscale": 1.0,
    "model.registers": 0,
    "model.drop_path": 0.0,
    "model.rope_rescale": None,
    "head.prototypes": 256,
    "head.layers": 2,
    "head.hidden": 512,
    "head.bottleneck": 128,
    "head.init": "fan_in",
    "views.local_crops": 0,
    "views.global_scale": (0.7, 1.0),
    "views.aspect": (1 / 1.2, 1.2),
    "views.flip": 0.0,
    "views.gamma": 1.65,
    "views.blur_sigma": (0.1, 3.5),
    "views.blur_global": None,
    "views.blur_unit": "scaled",
    "views.elongated": True,
    "views.saturation": 0.0,
    "views.grey": 0.0,
    "loss.koleo_weight": 0.05,
    "teacher.momentum": 0.9,
    "teacher.momentum_batch": 256,
    "loss.center_batch": 256,
    "teacher.temperature_start": 0.03,
    "teacher.temperature": 0.03,
    "optim.lr": 0.0015,
    "optim.lr_batch": 256,
    "optim.lr_end": 1e-5,
    "optim.weight_decay_end": 0.04,
    "optim.layer_decay": 1.0,
    "optim.patch_embed_lr": 1.0,
    "optim.clip_scope": "joint",
    "optim.freeze_last_layer": 0,
}
# The demo's network and crops, on one's own images: minutes on two CPU cores.
TRY: dict[str, Any] = SMALL | {
    "model.name": "vit-tiny",
    "model.width": 256,
    "model.depth": 2,
    "model.heads": 4,
    "views.global_size": 64,
    "train.effective_batch": 64,  # of so few images many small steps teach more than few large
    "train.steps": 960,
    "checkpoint.every": 240,
}
SIZES_OF_TRY = ("model.name", "model.width", "model.depth", "model.heads")
# Goes on from good weights, on top of what is for the number of images and of what a RUN hands on.
# Set by measurement; see docs/evidence.md and docs/stages.md.
CONTINUE: dict[str, Any] = {
    "teacher.momentum": 0.98,
    "teacher.momentum_batch": None,
    "optim.lr": 2e-4,
    "optim.lr_batch": 128,
    "optim.lr_end": None,  # as at the peak
    "optim.layer_decay": 0.9,
    "optim.patch_embed_lr": 0.2,
    "optim.weight_decay_end": 0.04,
    "optim.freeze_last_layer": 0,
}
# The recipe of DINOv3's 7B model: its configuration file, and Table 2 of the paper for the heads.
# Rates, weight decay and momentum are constant after the warmup. A recipe, for any backbone.
DINOV3_7B: dict[str, Any] = {
    "model.drop_path": 0.4,
    "head.prototypes": 262_144,
    "head.ibot_prototypes": 98_304,
    "head.hidden": 8192,
    "head.ibot_hidden": 4096,
    "head.bottleneck": 512,
    "head.ibot_bottleneck": 384,
    "views.flip": 0.0,
    "views.global_size": 256,
    "views.local_size": 112,
    "loss.koleo_group": 16,
    "teacher.momentum": 0.994,
    "teacher.momentum_end": 0.994,
    "optim.lr": 2e-4,
    "optim.lr_batch": 1024,
    "optim.lr_end": None,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.04,
    "optim.layer_decay": 0.98,
    "optim.beta2": 0.99,
    "optim.clip": 30.0,
}
# Softmax centering collapses to a point at the small preset's temperature; DINO's does not.
SOFTMAX: dict[str, Any] = {"teacher.temperature_start": 0.04, "teacher.temperature": 0.07}
# Shares of the steps for what is given in steps and left open: those of DINOv3's ViT-L, and where
# the 7B differs, its own.
SHARES = {
    "optim.warmup": 0.1,
    "optim.freeze_last_layer": 0.01,
    "teacher.temperature_warmup": 0.3,
}
SHARES_OF = {"dinov3-7b": {"optim.freeze_last_layer": 0.005, "teacher.temperature_warmup": 0.1}}
FROZEN = 0.25  # share of the steps in which new heads alone are trained
# DINOv3's high-resolution adaptation (section 5.1 and the configuration released with it): rate,
# weight decay and momentum are constant after the warmup; 5e-5 at 1,024 is 7.1e-5 at 2,048.
HIGHRES: dict[str, Any] = {
    "model.drop_path": 0.4,
    "gram.weight": 1.5,
    "loss.local_weight": 0.5,
    "teacher.momentum": 0.999,
    "teacher.momentum_end": 0.999,
    "optim.lr": 5e-5,
    "optim.lr_batch": 1024,
    "optim.lr_end": None,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.04,
    "optim.layer_decay": 0.98,
    "optim.beta2": 0.99,
    "optim.clip": 30.0,
    "optim.freeze_last_layer": 0,
}
# For few images these rates would move nothing in the steps there are: what was tried instead.
HIGHRES_SMALL: dict[str, Any] = CONTINUE | {"gram.weight": 2.0, "loss.local_weight": 0.5}
# (global, local, Gram crops against those before, share of the steps): DINOv3's sets, which are
# (512, 112, 768) 0.3, (768, 112, 1152) 0.3, (768, 168, 1152) 0.3, (768, 224, 1152) 0.05 and
# (768, 336, 1152) 0.05 after crops of 256 and 112 pixels.
LARGER = (
    (2, 1, 3, 0.3),
    (3, 1, 4.5, 0.3),
    (3, 1.5, 4.5, 0.3),
    (3, 2, 4.5, 0.05),
    (3, 3, 4.5, 0.05),
)
GOING_ON = ("continue", "highres")  # presets that start from weights
PASSES_OF = {"continue": 30, "highres": 10}  # instead of PASSES
NO_LONGER = {"gram.level": "image"}  # options that are gone, with the one value that they had
LOADED = ("model.init", "model.layerscale", "model.registers")  # come with a model's weights
SHOWN = {
    "try": TRY, "small": SMALL, "continue": CONTINUE, "highres": HIGHRES, "dinov3-7b": DINOV3_7B,
}  # fmt: skip


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as ``{"section.key": value}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of ``dotted``."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return values


def known_options() -> list[str]:
    """Every option as ``section.key``."""
    return list(dotted(Options().model_dump()))


def read_config(path: Path) -> dict[str, Any]:
    """A YAML configuration file as ``{"section.key": value}``.

    Raises: UserError if it is not there or not YAML of that form.
    """
    try:
        values = load_yaml(read_text(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except KeyTwiceError as error:
        raise UserError(
            f"{path}, line {error.line}: the key '{error.key}' is there twice"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line} is not YAML") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no options; expected lines such as 'train: {{steps: 100}}'")
    return {name: v for name, v in dotted(values).items() if (name, v) not in NO_LONGER.items()}


def parse_setting(text: str) -> tuple[str, Any]:
    """``section.key=value`` as a pair; the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set takes section.key=value, got '{text}'")
    try:
        return name.strip(), load_yaml(value)
    except (yaml.YAMLError, KeyTwiceError) as error:
        raise UserError(f"--set {name}: '{value[:80]}' is not a value") from error


def collect_overrides(
    config: Path | None, settings: Sequence[str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """What the user set, by file, ``--set`` and flags; None in a flag is not set."""
    overrides = read_config(config) if config else {}
    overrides |= dict(parse_setting(text) for text in settings)
    return overrides | {name: value for name, value in flags.items() if value is not None}


def as_yaml(value: Any) -> str:
    """A value as one would write it in a configuration file, numbers to 4 digits."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check(flat: Mapping[str, Any]) -> Options:
    """Options from ``section.key`` values.

    Raises: UserError naming the first option that is unknown (and the nearest known), or whose
        value is wrong (and what is allowed).
    """
    known = known_options()
    for name in flat:
        if name not in known:
            raise UserError(f"unknown option '{name}'{hint(name, known)}")
    try:
        return Options.model_validate(nested(flat))
    except ValidationError as error:
        raise UserError(describe(error, flat)) from error


def describe(error: ValidationError, flat: Mapping[str, Any]) -> str:
    """One line for the first thing wrong."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    name = next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in flat), parts[0])
    value = flat.get(name, first["input"])
    if first["type"] == "value_error":
        return f"{name}: {first['msg'].removeprefix('Value error, ')}"
    allowed = allowed_values(name)
    if allowed:
        words = [word for word in allowed if isinstance(word, str)]
        numbers = " or a whole number from 1" if takes_number(name) else ""
        listed = ", ".join(map(str, words)) + numbers
        return f"{name} is one of {listed}; got '{value}'{nearest(str(value), words)}"
    return f"{name}: {first['msg'].lower()}; got '{str(value)[:80]}'"


def field_of(name: str) -> Any:
    """The declaration of ``section.key``."""
    inner: Any = Options
    *sections, key = name.split(".")
    for section in sections:
        inner = inner.model_fields[section].annotation
    return inner.model_fields[key]


def allowed_values(name: str) -> list[str]:
    """The words an option takes, or none if it takes no fixed words."""

    def words(declared: Any) -> list[str]:
        if get_origin(declared) is not None and not isinstance(declared, type):
            inside = get_args(declared)
            if all(isinstance(word, str) for word in inside):
                return list(inside)
            return [word for part in inside for word in words(part)]
        return []

    return words(field_of(name).annotation)


def takes_number(name: str) -> bool:
    """Whether an option with fixed words takes a number as well."""

    def types(declared: Any) -> list[Any]:
        inside = get_args(declared)
        if not inside:
            return [declared]
        return [found for part in inside for found in types(part)]

    return int in types(field_of(name).annotation)


def stage_values(preset: str, images: int) -> dict[str, Any]:
    """What a preset that starts from weights sets; nothing if the preset is another one."""
    if preset == "continue":
        return CONTINUE
    if preset == "highres":
        return HIGHRES_SMALL if images < SMALL_IMAGES else HIGHRES
    return {}


def usual_model(preset: str) -> str:
    """The model of a preset, where the user names none."""
    return str(TRY["model.name"]) if preset == "try" else Options().model.name


def preset_values(preset: str, model: str, images: int) -> dict[str, Any]:
    """What a preset sets, for a model and so many images; what it leaves out is the default."""
    if preset == "dinov3-7b":
        return DINOV3_7B
    if preset == "try":
        return try_values(model)
    going_on = stage_values(preset, images)
    small = preset == "small" or (bool(going_on) and images < SMALL_IMAGES)
    base = dict(SMALL) if small else {}
    if not is_size(model):
        base = {name: value for name, value in base.items() if name not in LOADED}
    return base | going_on


def try_values(model: str) -> dict[str, Any]:
    """What the preset ``try`` sets; a model that the user names keeps its sizes."""
    not_set: tuple[str, ...] = ()
    if model != TRY["model.name"]:
        not_set = SIZES_OF_TRY
    if not is_size(model):
        not_set += LOADED
    return {name: value for name, value in TRY.items() if name not in not_set}


def differing(saved: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """What the user now sets otherwise than a saved run, as ``name: X then, Y now``."""
    now = dotted(check(overrides).model_dump(mode="json"))
    return [
        f"{name}: {saved.get(name)} then, {now[name]} now"
        for name in overrides
        if name not in FREE_ON_RESUME and now[name] not in (saved.get(name), "auto", None)
    ]
