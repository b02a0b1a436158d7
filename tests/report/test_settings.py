"""Which settings differ from the preset, and that paths are never shown."""

import pytest

from dino_x.config.presets import dotted
from dino_x.config.resolve import Facts, resolve
from dino_x.report.settings import all_settings, differing_from_preset, shown

IMAGES = 1234


def settings_of(**overrides):
    overrides = {name.replace("__", "."): value for name, value in overrides.items()}
    options = resolve({"data.paths": ["/x/Jane"], **overrides}, Facts(IMAGES)).options
    return dotted(options.model_dump(mode="json"))


@pytest.mark.parametrize("preset", ["small", "dinov3"])
def test_a_preset_as_it_is_differs_in_nothing(preset):
    assert differing_from_preset(settings_of(preset=preset), IMAGES) == []


def test_only_what_was_set_is_listed_with_the_presets_value():
    found = differing_from_preset(settings_of(preset="small", optim__lr=0.01), IMAGES)
    assert [(s.name, s.value, s.preset) for s in found] == [("optim.lr", "0.01", "0.0015")]
    assert found[0].meaning.startswith("Peak learning rate")


def test_values_that_follow_from_others_are_not_listed():
    """Warmup is 10% of the steps: setting the steps does not set it."""
    found = differing_from_preset(settings_of(preset="small", train__steps=77), IMAGES)
    assert [(s.name, s.value) for s in found] == [("train.steps", "77")]
    assert found[0].preset == "483"  # 100 passes over 1,234 images, 256 a step
    found = differing_from_preset(settings_of(preset="small", optim__warmup=3), IMAGES)
    assert [s.name for s in found] == ["optim.warmup"]


def test_options_of_other_versions_are_shown():
    settings = settings_of(preset="small") | {"new.option": 3}
    assert [(s.name, s.preset) for s in differing_from_preset(settings, None)][-1] == (
        "new.option", "not known to this version",
    )  # fmt: skip


def test_no_path_is_shown():
    settings = settings_of(model__name="/home/jane/model", data__labels="jane.csv")
    text = " ".join(s.value + s.preset for s in all_settings(settings))
    text += " ".join(s.value + s.preset for s in differing_from_preset(settings, IMAGES))
    assert "ane" not in text


@pytest.mark.parametrize("path", ["/jane", "./jane", "~/jane", "jane\\model", "a/jane/b"])
def test_whatever_looks_like_a_path_is_not_shown(path):
    assert shown("model.name", path) == "a path, not shown"
    assert shown("model.name", "facebook/dinov3-vits16") == "facebook/dinov3-vits16"
