"""Crop sizes of a step: small ones first, if asked."""

import pytest

from dino_x.config.resolve import Facts, resolve
from dino_x.errors import UserError
from dino_x.training.prepare import check_patches
from dino_x.training.steps import FILLING
from dino_x.views.sizes import crop_sizes, draw_sizes


def options(**settings):
    overrides = {name.replace("__", "."): value for name, value in settings.items()}
    base = {"preset": "dinov3", "train.steps": 100}
    return resolve(base | overrides, Facts(500_000)).options


def test_three_quarters_of_the_steps_have_half_the_size():
    """FastDINOv2 (arXiv 2507.03779): small crops first, full ones in the last quarter."""
    early = options(views__early_share=0.75)
    sizes = [draw_sizes(early, step) for step in range(100)]
    assert [one.global_size for one in sizes] == [112] * 75 + [224] * 25
    assert [one.local_size for one in sizes] == [48] * 75 + [96] * 25


def test_it_is_off_by_default():
    plain = options()
    assert plain.views.early_share == 0
    assert {draw_sizes(plain, step).global_size for step in range(100)} == {224}
    assert len(crop_sizes(plain)) == 1


def test_the_sets_of_the_late_steps_are_those_drawn_without_it():
    sets = [{"global_size": 224, "local_size": 96}, {"global_size": 256, "local_size": 112}]
    with_it = options(views__early_share=0.25, views__sizes=sets)
    without = options(views__sizes=sets)
    for step in range(25, 100):
        assert draw_sizes(with_it, step) == draw_sizes(without, step)
    assert {draw_sizes(with_it, step).global_size for step in range(25)} == {112}


def test_the_weights_of_all_sets_are_their_shares_of_the_steps():
    sets = [{"global_size": 224, "weight": 3.0}, {"global_size": 256, "weight": 1.0}]
    found = crop_sizes(options(views__early_share=0.6, views__sizes=sets))
    assert [one.weight for one in found] == pytest.approx([0.6, 0.3, 0.1])


def test_the_queue_is_filled_with_crops_of_the_size_that_the_run_begins_with():
    assert draw_sizes(options(views__early_share=0.75), FILLING).global_size == 112
    assert draw_sizes(options(), FILLING).global_size == 224


def test_sizes_can_be_given_and_must_be_whole_patches():
    given = options(
        views__early_share=0.5, views__early_global_size=128, views__early_local_size=64
    )
    first = draw_sizes(given, 0)
    assert (first.global_size, first.local_size) == (128, 64)
    check_patches(given, 16, 16)
    odd = options(views__early_share=0.5, views__early_global_size=120)
    with pytest.raises(UserError) as error:
        check_patches(odd, 16, 16)
    line = "views.early_global_size 120 is not a multiple of the patch size 16; nearest: 112, 128"
    assert str(error.value) == line
