"""One place decides every option, and nobody changes one after."""

import pytest
from pydantic import ValidationError

from dino_x.config.resolve import Facts, resolve, with_values
from dino_x.errors import UserError


def test_nothing_is_left_open_but_the_micro_batch():
    resolved = resolve({}, Facts(5000))
    values = resolved.options.model_dump()
    assert values["train"]["micro_batch"] == "auto"
    assert values["loss"]["centering"] == "sinkhorn"
    for section, key in (("train", "steps"), ("optim", "warmup"), ("optim", "freeze_backbone"),
                         ("optim", "freeze_last_layer"), ("teacher", "temperature_warmup"),
                         ("online", "every")):  # fmt: skip
        assert values[section][key] is not None, (section, key)
    assert values["model"]["heads_from"] == "new"


def test_the_policy_for_small_batches_is_part_of_it():
    resolved = resolve({"train.effective_batch": 16}, Facts(500))
    assert resolved.options.loss.centering == "sinkhorn"
    assert resolved.options.loss.queue == 480
    assert "480" in resolved.policy.message
    fallback = {"train.effective_batch": 16, "loss.on_small_batch": "fallback"}
    assert resolve(fallback, Facts(500)).options.loss.centering == "softmax"
    fallen = resolve(fallback | {"preset": "small"}, Facts(500)).options
    assert (fallen.teacher.temperature_start, fallen.teacher.temperature) == (0.04, 0.07)  # DINO's
    own = {"preset": "small", "teacher.temperature": 0.05}
    assert resolve(fallback | own, Facts(500)).options.teacher.temperature == 0.05
    assert resolve({"preset": "small"}, Facts(500)).options.teacher.temperature == 0.03
    with pytest.raises(UserError, match="below the floor"):
        resolve({"train.effective_batch": 16, "loss.on_small_batch": "error"}, Facts(500))


def test_what_a_run_hands_on_wins_over_the_preset_and_the_user_wins_over_all():
    facts = Facts(500, {"views.global_size": 96, "model.heads_from": "run"})
    options = resolve({}, facts).options
    assert (options.views.global_size, options.model.heads_from) == (96, "run")
    assert resolve({"views.global_size": 64}, facts).options.views.global_size == 64


def test_options_do_not_change():
    options = resolve({}, Facts(10)).options
    with pytest.raises(ValidationError, match="frozen"):
        options.train.steps = 5
    with pytest.raises(ValidationError, match="frozen"):
        options.train = None
    other = with_values(options, {"train.steps": 5, "optim.lr": 0.5})
    assert (other.train.steps, other.optim.lr) == (5, 0.5)
    assert options.train.steps != 5
