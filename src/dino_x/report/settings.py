"""The settings of a run: which differ from its preset, and how they are shown.

Paths are not: folders of images are often called by the names of people or studies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dino_x.config.options import Options
from dino_x.config.presets import as_yaml, dotted, field_of, known_options, preset_values
from dino_x.config.resolve import Facts, resolve
from dino_x.errors import UserError

PATHS = {
    "data.paths", "data.labels", "data.index", "data.cache", "gram.teacher", "teacher.model",
}  # fmt: skip
# What a run finds by itself where it is not told: no choice of the user, if it is as found.
FOUND = (
    "train.steps", "optim.warmup", "optim.freeze_last_layer", "optim.freeze_backbone",
    "teacher.temperature_warmup", "online.every",
)  # fmt: skip
NOT_CHOSEN = {
    "preset", "data.paths", "data.labels", "train.micro_batch", "loss.centering",
    "model.heads_from",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """An option as it is shown: its name, value, the preset's value and its meaning."""

    name: str
    value: str
    preset: str
    meaning: str


def shown(name: str, value: Any) -> str:
    """A value for people, without paths.

    >>> shown("data.paths", ["/home/anna/films", "/home/anna/mri"]), shown("optim.lr", 0.003)
    ('2 paths, not shown', '0.003')
    >>> shown("model.name", "/home/anna/model"), shown("model.name", "facebook/dinov3-vits16")
    ('a path, not shown', 'facebook/dinov3-vits16')
    """
    if value is None:
        return "not set"
    if isinstance(value, str) and may_be_path(name, value):
        return "a path, not shown"
    if isinstance(value, list) and any(isinstance(item, str) for item in value):
        plural = "s" if len(value) != 1 else ""
        return f"{len(value)} path{plural}, not shown"
    return as_yaml(value)


def may_be_path(name: str, text: str) -> bool:
    """Whether the value of an option is a path, or looks like one."""
    if name in PATHS:
        return text not in ("folder", "column")
    return text.startswith(("/", ".", "~")) or "\\" in text or text.count("/") > 1


def differing_from_preset(settings: Mapping[str, Any], images: int | None) -> list[Setting]:
    """What the user set otherwise than the preset has it.

    Args:
        settings: a run's resolved ``section.key`` values.
        images: trained on; None if not known, when the number of steps is always shown.
    """
    base = dotted(Options().model_dump(mode="json"))
    preset, model = str(settings.get("preset")), str(settings.get("model.name"))
    base |= preset_values(preset, model, images or 1)
    differ = {}
    for name, value in settings.items():
        if name not in NOT_CHOSEN and plain(value) != plain(base.get(name)):
            differ[name] = value
    derived = derived_values(settings, differ, images)
    chosen = [
        name for name, value in differ.items() if name not in FOUND or derived.get(name) != value
    ]
    usual = base | {name: value for name, value in derived.items() if name in base}
    return [setting_of(name, differ[name], usual) for name in chosen]


def setting_of(name: str, value: Any, usual: Mapping[str, Any]) -> Setting:
    """An option beside the value that it would have had."""
    preset = shown(name, usual[name]) if name in usual else "not known to this version"
    return Setting(name, shown(name, value), preset, meaning_of(name))


def derived_values(
    settings: Mapping[str, Any], differ: Mapping[str, Any], images: int | None
) -> dict[str, Any]:
    """What the run would have found by itself for the options in `FOUND`, one by one."""
    known = set(known_options())
    as_set = {name: value for name, value in differ.items() if name in known}
    as_set["preset"] = settings.get("preset", "auto")
    found = {}
    for name in FOUND:
        if name == "train.steps" and images is None:
            continue
        # Every other option as it was set, so that warmup is that of the steps that were set.
        others = {other: value for other, value in as_set.items() if other != name}
        try:
            options = resolve(others, Facts(images or 1)).options
        except UserError:
            continue
        found[name] = dotted(options.model_dump(mode="json"))[name]
    return found


def plain(value: Any) -> Any:
    """Tuples as lists and whole floats as they are: YAML knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def meaning_of(name: str) -> str:
    """The option's meaning, or nothing for one this version does not know."""
    try:
        return field_of(name).description or ""
    except (KeyError, AttributeError, ValueError):
        return ""


def all_settings(settings: Mapping[str, Any]) -> list[Setting]:
    """Every option of the run."""
    return [
        Setting(name, shown(name, value), "", meaning_of(name)) for name, value in settings.items()
    ]
