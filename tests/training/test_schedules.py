import math

import pytest

from dino_x.config.resolve import Facts, resolve
from dino_x.training.schedules import (
    cosine,
    peak_lr,
    values_at,
    warmup_cosine,
    warmup_linear,
)


def test_cosine_ends_are_met():
    assert cosine(3, 1, 0, 11) == pytest.approx(3)
    assert cosine(3, 1, 5, 11) == pytest.approx(2)
    assert cosine(3, 1, 10, 11) == pytest.approx(1)
    assert cosine(3, 1, 0, 1) == pytest.approx(3)


def test_warmup_rises_in_equal_parts_to_the_peak_and_falls_to_the_end():
    values = [warmup_cosine(8.0, 0.5, step, 20, 4) for step in range(20)]
    assert values[:4] == pytest.approx([2, 4, 6, 8])
    assert values[4] == pytest.approx(8)
    assert values == sorted(values[:5]) + sorted(values[5:], reverse=True)
    assert values[-1] == pytest.approx(0.5)
    assert warmup_cosine(8.0, 0.5, 0, 20, 0) == pytest.approx(8)


def test_warmup_linear():
    assert [warmup_linear(0.04, 0.07, step, 3) for step in (0, 1, 3, 9)] == pytest.approx(
        [0.04, 0.05, 0.07, 0.07]
    )
    assert warmup_linear(0.04, 0.07, 0, 0) == 0.07


def test_the_weight_of_local_crops_falls_with_gram_anchoring_as_published():
    """DINOv3: 1 in pretraining, 0.5 with Gram anchoring (section 4.2) and at high resolution."""
    plain = resolve({"preset": "dinov3", "train.steps": 100}, Facts(500_000)).options
    assert {values_at(step, plain).local_weight for step in (0, 50, 99)} == {1.0}
    gram = {"gram.weight": 2.0, "gram.start": 40, "gram.warmup": 10}
    options = resolve({"preset": "dinov3", "train.steps": 100} | gram, Facts(500_000)).options
    found = [values_at(step, options).local_weight for step in (0, 39, 40, 45, 50, 99)]
    assert found == pytest.approx([1, 1, 1, 0.75, 0.5, 0.5])
    highres = resolve({"preset": "highres", "train.steps": 100}, Facts(500_000)).options
    assert values_at(0, highres).local_weight == 0.5
    without = resolve(
        {"preset": "highres", "train.steps": 100, "gram.weight": 0}, Facts(500_000)
    ).options
    assert values_at(0, without).local_weight == 0.5


def test_dinov3s_values_at_the_start_the_end_and_in_between():
    options = resolve({"preset": "dinov3", "train.steps": 1000}, Facts(500_000)).options
    assert peak_lr(options) == pytest.approx(0.004 * math.sqrt(256 / 1024))
    first, last = values_at(0, options), values_at(999, options)
    assert first.lr == pytest.approx(peak_lr(options) / 100)
    assert last.lr == pytest.approx(1e-6 * math.sqrt(256 / 1024))  # DINOv3 scales both ends
    assert values_at(99, options).lr == pytest.approx(peak_lr(options))
    assert (first.weight_decay, last.weight_decay) == pytest.approx((0.04, 0.4))
    assert (first.momentum, last.momentum) == pytest.approx((0.992, 1.0))
    assert first.teacher_temperature == pytest.approx(0.04)
    assert values_at(300, options).teacher_temperature == pytest.approx(0.07)
    assert values_at(9, options).last_layer_frozen
    assert not values_at(10, options).last_layer_frozen


@pytest.mark.parametrize(("batch", "momentum"), [(256, 0.9), (64, 0.9**0.25), (512, 0.81)])
def test_the_small_presets_teacher_remembers_as_many_images_at_any_batch(batch, momentum):
    """Busbridge et al. 2023: a batch k times as large stands for k steps."""
    overrides = {"preset": "small", "train.steps": 100, "train.effective_batch": batch}
    options = resolve(overrides, Facts(1000)).options
    assert values_at(0, options).momentum == pytest.approx(momentum)
    assert values_at(99, options).momentum == pytest.approx(1.0)
    as_it_is = resolve(overrides | {"teacher.momentum_batch": None}, Facts(1000)).options
    assert values_at(0, as_it_is).momentum == pytest.approx(0.9)
