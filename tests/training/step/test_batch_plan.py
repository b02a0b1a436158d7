"""What a step draws is a function of (seed, step)."""

import numpy as np

from dino_x.config.resolve import Facts, resolve
from dino_x.training.step.batch_plan import draw_batch_plan
from dino_x.views.crops import DRAWS, NO_COLOUR, NO_TURN
from dino_x.views.extra import EXTRA_DRAWS
from dino_x.views.stains import STAIN_DRAWS
from tests.conftest import TINY


def plan(step=4, depth=6, **settings):
    overrides = TINY | {name.replace("__", "."): value for name, value in settings.items()}
    options = resolve(overrides | {"train.steps": 10}, Facts(80)).options
    return draw_batch_plan(options, step, 80, depth, 8)


def test_rope_is_rescaled_for_each_block_and_kind_of_crop():
    """DINOv3: between 1/2 and 2 (pos_embed_rope_rescale_coords), drawn in each block."""
    drawn = plan()
    for rescale_L in (drawn.global_rescale_L, drawn.local_rescale_L):
        assert rescale_L.shape == (6,)
        assert len(set(rescale_L)) == 6
        assert ((rescale_L >= 0.5) & (rescale_L <= 2)).all()
    assert not set(drawn.global_rescale_L) & set(drawn.local_rescale_L)
    many = np.concatenate([plan(step, depth=50).global_rescale_L for step in range(8)])
    assert abs(np.log(many).mean()) < 0.1
    assert abs(np.log(many).std() - np.log(2) / np.sqrt(3)) < 0.04  # log-uniform


def test_rope_is_rescaled_once_a_forward_if_asked():
    drawn = plan(model__rope_scope="forward")
    for rescale_L in (drawn.global_rescale_L, drawn.local_rescale_L):
        assert len(set(rescale_L)) == 1
    assert drawn.global_rescale_L[0] == plan().global_rescale_L[0]
    assert (plan(model__rope_rescale=None).global_rescale_L == 1).all()


def test_what_is_drawn_depends_on_the_step_alone():
    assert (plan(step=3).global_rescale_L == plan(step=3).global_rescale_L).all()
    assert (plan(step=3).global_rescale_L != plan(step=4).global_rescale_L).all()


def test_colours_are_drawn_apart_and_not_for_three_slices():
    colour, slices = plan(), plan(data__slices=3)
    for kind in ("global_draws_BVU", "local_draws_BVU"):
        with_colour, without = getattr(colour, kind), getattr(slices, kind)
        assert (with_colour[..., :DRAWS] == without[..., :DRAWS]).all()
        assert (without[..., DRAWS : DRAWS + 2] == NO_COLOUR).all()
        assert (with_colour[..., DRAWS : DRAWS + 2] < 1).all()
        assert len(np.unique(with_colour[..., DRAWS])) == with_colour[..., 0].size


def test_turns_stains_and_numbers_for_code_are_drawn_apart_from_all_else():
    """A run that has none of them draws what it drew before they were there."""
    plain, more = plan(), plan(views__turns=0.75, views__stain=0.2, views__extra="json:dumps")
    for kind in ("global", "local"):
        before, after = (getattr(one, f"{kind}_draws_BVU") for one in (plain, more))
        assert (before[..., :-1] == after[..., :-1]).all()
        assert (before[..., -1] == NO_TURN).all()
        assert len(np.unique(after[..., -1])) == after[..., -1].size
        for what, numbers in (("stains", STAIN_DRAWS), ("extra", EXTRA_DRAWS)):
            name = f"{kind}_{what}_BVU"
            assert getattr(plain, name) is None
            drawn = getattr(more, name)
            assert drawn.shape == (*before.shape[:2], numbers)
            assert len(np.unique(drawn)) == drawn.size
        all_B = [getattr(more, f"{kind}_{what}_BVU") for what in ("draws", "stains", "extra")]
        assert len(np.unique(np.concatenate(all_B, axis=2))) == sum(one.size for one in all_B)
    assert (plain.masks_BVN == more.masks_BVN).all()
    assert (plain.indices_B == more.indices_B).all()


def test_the_small_preset_keeps_the_views_that_it_was_measured_with():
    views = resolve({"preset": "small"}, Facts(80)).options.views
    assert (views.blur_global, views.blur_unit, views.elongated) == (None, "scaled", True)
    assert (views.saturation, views.grey, views.interpolation) == (0.0, 0.0, "bilinear")
