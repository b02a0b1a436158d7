"""Gram anchoring and mixed crop sizes: exact over the effective batch, and after a restart."""

import numpy as np
import pytest
import torch

from tests.equivalence.conftest import relative_error
from tests.losses.test_gram import plain_gram
from tests.training.runs import killed_after, losses, metrics, pretrain, weights

GRAM = {"gram__weight": 2.0, "gram__warmup": 0, "gram__size": 48}
MIXED = (
    "views.sizes=[{global_size: 32, local_size: 16, gram_size: 48},"
    " {global_size: 48, local_size: 24, weight: 2}]"
)


def with_old_teacher(step):
    """Give a bench a Gram teacher that is neither student nor teacher."""
    step.take_gram_teacher()
    return step


@pytest.mark.parametrize("size", [1, 2, 8])
def test_gradient_with_gram_does_not_depend_on_the_micro_batch(bench, size):
    step = with_old_teacher(bench(**GRAM))
    terms_whole, whole, _ = step.exact(16)
    terms, gradient, _ = step.exact(size)
    assert terms["gram"] > 1e-3
    assert relative_error(gradient, whole) < 1e-10
    for name, value in terms_whole.items():
        assert terms[name] == pytest.approx(value, rel=1e-10)
    without = with_old_teacher(bench())
    assert relative_error(without.exact(16)[1], whole) > 1e-3, "the term must matter"


@pytest.mark.parametrize(
    ("antialiased", "antialias"), [({}, False), ({"gram__antialias": True}, True)]
)
@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_the_term_is_the_plain_one_of_resized_features(bench, resize, antialiased, antialias):
    """DINOv3's features are resized without antialiasing."""
    step = with_old_teacher(bench(**GRAM, gram__resize=resize, **antialiased))
    terms, _, _ = step.exact(2)
    (micro,) = step.micro_batches(16)
    student, gram = step.steps.student, step.steps.gram
    with torch.no_grad():
        _, patches = student(micro.global_crops(), micro.masks(), micro.global_randomness())
        _, larger = gram.backbone(micro.gram_crops(), None, None)
        assert larger.shape[1] == 36
        grid = larger.transpose(1, 2).reshape(32, 32, 6, 6)
        grid = torch.nn.functional.interpolate(grid, (4, 4), mode=resize, antialias=antialias)
        expected = plain_gram(patches, grid.flatten(2).transpose(1, 2))
    assert terms["gram"] == pytest.approx(float(expected), rel=1e-10)
    total = sum(
        weight * terms[name]
        for name, weight in {"dino": 1, "ibot": 0.5, "koleo": 0.1, "gram": 2.0}.items()
    )
    assert terms["loss"] == pytest.approx(total, rel=1e-10)


def test_gram_crops_are_the_global_crops_without_blur_and_changes_of_intensity(bench):
    """DINOv3, section 4.2, and its configuration: the Gram teacher's crops are not distorted."""
    strong = {"views__blur_global": (1.0, 1.0), "views__intensity": 1.0, "gram__weight": 1.0}
    (micro,) = bench(**strong).micro_batches(16)
    none = {"views__blur_global": (0.0, 0.0), "views__intensity": 0.0}
    (plain,) = bench(**none).micro_batches(16)
    assert torch.equal(micro.gram_crops(), plain.global_crops())
    assert relative_error(micro.gram_crops(), micro.global_crops()) > 0.1


def test_gram_crops_show_what_the_global_crops_show(bench):
    """Larger, and otherwise the same: reduced again they are nearly equal."""
    plain = {"views__blur_global": (0.0, 0.0), "views__intensity": 0.0}
    (micro,) = bench(gram__size=64, gram__weight=1.0, **plain).micro_batches(16)
    small, large = micro.global_crops(), micro.gram_crops()
    assert large.shape[-1] == 64
    reduced = torch.nn.functional.avg_pool2d(large, 2)
    assert float((reduced - small).abs().mean()) < 0.25 * float(small.std())


TINY_RUN = ("--effective-batch", 8, "--centering", "sinkhorn", "--precision", "fp64")
STAGE = {"gram__weight": 2.0, "gram__start": 1, "gram__refresh": 2, "gram__size": 48,
         "gram__warmup": 2}  # fmt: skip


def test_runs_with_gram_and_mixed_sizes_do_not_depend_on_the_micro_batch(films, tmp_path):
    for size in (2, 8):
        flags = ("--micro-batch", size, *TINY_RUN, "--steps", 4, "--set", MIXED)
        assert pretrain(films, tmp_path / str(size), *flags, **STAGE) == 0
    small, whole = (metrics(tmp_path / str(size)) for size in (2, 8))
    assert ["gram" in step for step in whole] == [False, False, True, True]  # 0 at the start
    for one, other in zip(small, whole, strict=True):
        for name in ("loss", "dino", "ibot", "koleo", "gram", "gradient_norm"):
            if name in other:
                assert one[name] == pytest.approx(other[name], rel=1e-8), name
    after, expected = weights(tmp_path / "2", 4), weights(tmp_path / "8", 4)
    for name, value in expected.items():
        if name.startswith((".student", ".teacher", ".gram")):
            torch.testing.assert_close(after[name], value, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_the_stage_is_the_same_bit_for_bit(films, tmp_path):
    flags = (*TINY_RUN[:-2], "--micro-batch", 4, "--steps", 7, "--set", MIXED)
    settings = {**STAGE, "checkpoint__every": 1, "checkpoint__keep": 99}
    assert pretrain(films, tmp_path / "whole", *flags, **settings) == 0
    killed_after(4, films, tmp_path / "killed", *flags, **settings)
    assert len(metrics(tmp_path / "killed")) < 7, "it was killed too late to show anything"
    assert pretrain(films, tmp_path / "killed", "--resume", *flags, **settings) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    resumed, whole = weights(tmp_path / "killed", 7), weights(tmp_path / "whole", 7)
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_the_gram_teacher_changes_only_when_it_is_taken_anew(films, tmp_path):
    """It is the EMA teacher after gram.start and after every refresh, up to the limit."""
    flags = (*TINY_RUN, "--micro-batch", 8, "--steps", 7)
    settings = {**STAGE, "gram__refreshes": 2, "checkpoint__every": 1, "checkpoint__keep": 99}
    assert pretrain(films, tmp_path / "run", *flags, **settings) == 0
    taken = {1: 1, 2: 1, 3: 3, 4: 3, 5: 5, 6: 5, 7: 5}  # after step: as of step
    layer = "vit.model.layer.1.mlp.up_proj.weight"
    for step, source in taken.items():
        now = weights(tmp_path / "run", step)[f".gram.{layer}"]
        then = weights(tmp_path / "run", source)[f".teacher.backbone.{layer}"]
        assert torch.equal(now, then), step
    teachers = [weights(tmp_path / "run", s)[f".teacher.backbone.{layer}"] for s in (1, 3, 5)]
    assert not torch.equal(teachers[0], teachers[1])


def test_a_named_gram_teacher_stays_as_it_is(films, tmp_path):
    flags = (*TINY_RUN, "--micro-batch", 8, "--steps", 2)
    assert pretrain(films, tmp_path / "first", *flags) == 0
    settings = {"gram__weight": 1.0, "gram__teacher": str(tmp_path / "first")}
    assert pretrain(films, tmp_path / "next", *flags, **settings, train__seed=5) == 0
    first, after = weights(tmp_path / "first", 2), weights(tmp_path / "next", 2)
    gram = {name: value for name, value in after.items() if name.startswith(".gram.")}
    assert gram
    for name, value in gram.items():
        expected = first[name.replace(".gram.", ".teacher.backbone.")]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6, msg=name)


def test_each_step_draws_one_set_of_sizes_in_proportion():
    from dino_x.config.presets import check
    from dino_x.views.sizes import draw_sizes

    sets = [{"global_size": 32, "local_size": 16}, {"global_size": 48, "local_size": 24,
                                                    "weight": 3.0}]  # fmt: skip
    options = check({"views.sizes": sets})
    drawn = [draw_sizes(options, step).global_size for step in range(400)]
    assert np.mean(np.array(drawn) == 48) == pytest.approx(0.75, abs=0.06)
    assert drawn == [draw_sizes(options, step).global_size for step in range(400)]


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"gram__size": 50}, "gram.size 50 is not a multiple of the patch size 8; nearest: 48, 56"),
        ({"views__sizes": "[{global_size: 36}]"}, "views.sizes: global_size 36 is not a multiple"),
        ({"gram__teacher": "nowhere/at/all"}, "nowhere/at/all"),
        ({"gram__teacher": "vits16"}, "has no weights"),
    ],
)
def test_what_is_refused(films, tmp_path, capsys, settings, pattern):
    settings = {"gram__weight": 1.0} | settings
    assert pretrain(films, tmp_path / "run", *TINY_RUN, "--steps", 1, **settings) == 2
    error = capsys.readouterr().err.strip()
    assert pattern in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


def test_a_gram_teacher_of_another_width(films, tmp_path, capsys):
    from tests.model.released_format import network

    network("dinov3").save_pretrained(tmp_path / "m")
    settings = {"gram__weight": 1.0, "gram__teacher": str(tmp_path / "m")}
    assert pretrain(films, tmp_path / "run", *TINY_RUN, "--steps", 1, **settings) == 2
    assert "has 48 features a patch, the model 32" in capsys.readouterr().err
