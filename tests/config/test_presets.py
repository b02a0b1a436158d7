import pytest

from dino_x.config.options import FREE_ON_RESUME, Options
from dino_x.config.presets import (
    SMALL,
    check,
    collect_overrides,
    differing,
    dotted,
    field_of,
    known_options,
    nested,
    parse_setting,
    read_config,
)
from dino_x.config.resolve import Facts, resolve
from dino_x.demo import demo_folder
from dino_x.errors import UserError


def test_dotted_and_nested_are_opposites():
    values = Options().model_dump()
    assert nested(dotted(values)) == values


def test_every_option_says_what_it_means():
    for name in known_options():
        assert field_of(name).description, name


def test_what_is_free_on_resume_exists():
    assert set(FREE_ON_RESUME) <= set(known_options())


def test_later_wins(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("train: {steps: 5, seed: 1}\noptim: {lr: 0.1}\n")
    overrides = collect_overrides(
        config, ["train.seed=2", "optim.clip=1"], {"train.seed": "3", "preset": None}
    )
    options = resolve(overrides | {"preset": "dinov3"}, Facts(100)).options
    assert (options.train.steps, options.train.seed) == (5, 3)
    assert (options.optim.lr, options.optim.clip) == (0.1, 1.0)


def test_what_is_said_wins_over_the_preset():
    name, value = next((n, v) for n, v in SMALL.items() if isinstance(v, float))
    kept = resolve({"preset": "small"}, Facts(100)).options
    assert dotted(kept.model_dump())[name] == value
    changed = resolve({"preset": "small", name: value / 2}, Facts(100)).options
    assert dotted(changed.model_dump())[name] == value / 2


def test_try_is_the_demo_on_ones_own_images():
    chosen = resolve({"preset": "try"}, Facts(600)).options
    model, train = chosen.model, chosen.train
    assert (model.name, model.width, model.depth, model.heads) == ("vit-tiny", 256, 2, 4)
    assert (chosen.views.global_size, train.effective_batch, train.steps) == (64, 64, 960)
    demo = resolve(read_config(demo_folder() / "demo.yaml"), Facts(600)).options
    assert demo.train.micro_batch == 32
    assert demo.model_copy(update={"train": train}) == chosen


def test_a_model_that_is_named_keeps_its_sizes_in_try():
    named = resolve({"preset": "try", "model.name": "vits16"}, Facts(600)).options
    assert (named.model.name, named.model.width, named.train.steps) == ("vits16", None, 960)
    loaded = resolve({"preset": "try", "model.name": "some/model"}, Facts(600)).options
    assert loaded.model.registers is None
    assert loaded.views.global_size == 64


@pytest.mark.parametrize(
    ("model", "images", "preset"),
    [("vit-tiny", 10**7, "small"), ("vitb16", 99_999, "small"), ("vitb16", 100_000, "dinov3")],
)
def test_auto_is_chosen_by_model_and_images_and_says_so(model, images, preset):
    resolved = resolve({"model.name": model}, Facts(images))
    options, line = resolved.options, resolved.preset
    assert options.preset == preset
    assert preset in line
    assert "\n" not in line
    if preset == "dinov3":
        assert options == resolve({"model.name": model, "preset": "dinov3"}, Facts(images)).options


def test_open_values_are_filled_from_the_steps():
    options = resolve({"preset": "dinov3"}, Facts(2560)).options
    assert options.train.steps == 1000  # 100 passes
    assert options.optim.warmup == 100
    assert options.optim.freeze_last_layer == 10
    assert options.teacher.temperature_warmup == 300


def test_a_resolved_run_is_repeated_by_its_own_settings():
    options = resolve({"train.steps": 7, "preset": "small"}, Facts(500)).options
    again = resolve(dotted(options.model_dump(mode="json")), Facts(9)).options
    assert again == options


def test_differing_names_what_changed_and_only_that():
    saved = dotted(resolve({"train.steps": 7}, Facts(500)).options.model_dump(mode="json"))
    overrides = {"train.steps": "7", "train.seed": "1", "preset": "auto", "train.micro_batch": 2}
    assert differing(saved, overrides) == ["train.seed: 0 then, 1 now"]


def test_values_of_set_are_yaml():
    assert parse_setting("a.b=1e-3") == ("a.b", "1e-3")  # as YAML 1.1 has it; pydantic reads it
    assert parse_setting("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_setting("a.b=null") == ("a.b", None)
    assert check({"optim.lr": "1e-3"}).optim.lr == 1e-3


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_config(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert read_config(tmp_path / "empty.yaml") == {}


def test_options_that_are_gone_are_read_in_the_settings_of_older_runs(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("gram: {level: image, weight: 2}")
    assert read_config(config) == {"gram.weight": 2}
    config.write_text("gram: {level: batch}")
    with pytest.raises(UserError, match="unknown option 'gram.level'"):
        check(read_config(config))
