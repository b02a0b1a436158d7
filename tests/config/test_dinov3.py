"""Presets hold the values that DINOv3 published."""

import pytest
import torch

from dino_x.config.presets import dotted
from dino_x.config.resolve import Facts, resolve
from dino_x.cost.shapes import HeadShape
from dino_x.errors import UserError
from dino_x.model.teacher import build_student
from dino_x.training.build import first_centering
from dino_x.training.health.advice import advice
from dino_x.training.prepare import check_patches
from dino_x.training.schedules import values_at

MANY = 10_000_000  # images, so that no preset is for small data


def values(preset, images=MANY, patch_size=16, **overrides):
    settings = {name.replace("__", "."): value for name, value in overrides.items()}
    options = resolve({"preset": preset} | settings, Facts(images, {}, patch_size)).options
    return options, dotted(options.model_dump())


# Section 5.1 (high-resolution adaptation) and the configuration released for it.
HIGHRES = {
    "gram.weight": 1.5,  # gram.loss_weight
    "optim.weight_decay": 0.04,  # schedules.weight_decay, constant
    "optim.weight_decay_end": 0.04,
    "teacher.momentum": 0.999,  # schedules.momentum, constant
    "teacher.momentum_end": 0.999,
    "optim.layer_decay": 0.98,  # optim.layerwise_decay
    "optim.beta2": 0.99,  # optim.adamw_beta2
    "optim.clip": 30.0,  # optim.clip_grad
    "model.drop_path": 0.4,  # student.drop_path_rate
    "loss.local_weight": 0.5,  # dino.local_loss_weight
}


def test_highres_has_the_published_values():
    _, found = values("highres")
    assert {name: found[name] for name in HIGHRES} == HIGHRES


def test_the_rate_of_highres_is_the_published_one_and_constant_after_the_warmup():
    """1.25e-5 x 4 x sqrt(B / 1024), which is 7.1e-5 at 2,048 (section 5.1)."""
    options, _ = values("highres", train__effective_batch=2048, train__steps=100)
    rates = [values_at(step, options).lr for step in range(100)]
    published = 1.25e-5 * 4 * (2048 / 1024) ** 0.5
    assert published == pytest.approx(7.1e-5, rel=0.01)
    assert rates[10:] == pytest.approx([published] * 90)
    assert rates[0] == pytest.approx(published / 10)
    assert {values_at(step, options).momentum for step in (0, 50, 99)} == {0.999}
    assert {values_at(step, options).weight_decay for step in (0, 50, 99)} == {0.04}


def sets_of(options):
    return [
        (one.global_size, one.local_size, one.gram_size, one.weight) for one in options.views.sizes
    ]


def test_the_crops_of_highres_are_the_published_ones():
    """After 256 and 112 px: crops.global_crops_size, local_crops_size, gram_teacher_crops_size."""
    sizes = {"views__global_size": 256, "views__local_size": 112}
    seven, _ = values("highres", patch_size=14, views__global_size=252, views__local_size=112)
    assert [one[1] for one in sets_of(seven)] == [112, 112, 168, 224, 336]
    exact, _ = values("highres", patch_size=8, **sizes)
    assert sets_of(exact) == [
        (512, 112, 768, 0.3),
        (768, 112, 1152, 0.3),
        (768, 168, 1152, 0.3),
        (768, 224, 1152, 0.05),
        (768, 336, 1152, 0.05),
    ]
    sixteen, _ = values("highres", **sizes)  # 168 is 10.5 patches: the 10 whole ones
    assert [one[1] for one in sets_of(sixteen)] == [112, 112, 160, 224, 336]


def test_the_crops_of_highres_are_whole_patches_whatever_the_sizes_before():
    for patch, global_, local in ((14, 224, 98), (16, 224, 96), (8, 64, 24), (16, 64, 16)):
        options, _ = values(
            "highres", patch_size=patch, views__global_size=global_, views__local_size=local
        )
        for one in options.views.sizes:
            sides = (one.global_size, one.local_size, one.gram_size)
            assert all(side and side % patch == 0 for side in sides), (patch, sides)


def test_highres_for_few_images_keeps_rates_that_move_something_in_few_steps():
    _, found = values("highres", images=5_000)
    names = ("optim.lr", "optim.lr_batch", "optim.layer_decay", "gram.weight", "optim.clip")
    assert [found[name] for name in names] == [2e-4, 128, 0.9, 2.0, 3.0]


# The configuration released for the 7B, dinov3_vit7b16_pretrain.yaml.
SEVEN_B = {
    "model.drop_path": 0.4,
    "head.prototypes": 262_144,  # dino.head_n_prototypes
    "head.ibot_prototypes": 98_304,  # ibot.head_n_prototypes
    "head.layers": 3,  # dino.head_nlayers, ibot.head_nlayers
    "head.hidden": 8192,  # dino.head_hidden_dim
    "head.ibot_hidden": 4096,  # ibot.head_hidden_dim
    "head.bottleneck": 512,  # dino.head_bottleneck_dim
    "head.ibot_bottleneck": 384,  # ibot.head_bottleneck_dim
    "views.flip": 0.0,  # crops.horizontal_flips
    "views.global_scale": (0.32, 1.0),
    "views.local_scale": (0.05, 0.32),
    "views.local_crops": 8,
    "masks.probability": 0.5,  # ibot.mask_sample_probability
    "masks.ratio": (0.1, 0.5),  # ibot.mask_ratio_min_max
    "loss.koleo_weight": 0.1,
    "model.rope_rescale": 2.0,  # student.pos_embed_rope_rescale_coords
    "optim.patch_embed_lr": 0.2,  # optim.patch_embed_lr_mult
    "views.global_size": 256,
    "views.local_size": 112,
    "loss.koleo_group": 16,
    "loss.local_weight": 1.0,
    "teacher.momentum": 0.994,
    "teacher.momentum_end": 0.994,
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.04,
    "optim.layer_decay": 0.98,
    "optim.beta2": 0.99,
    "optim.clip": 30.0,
}
# The configuration released for a ViT-L on ImageNet, vitl_im1k_lin834.yaml.
VIT_L = {
    "head.layers": 3,
    "head.hidden": 2048,
    "views.flip": 0.5,
    "views.global_size": 224,
    "views.local_size": 96,
    "optim.patch_embed_lr": 0.2,
    "model.drop_path": 0.3,
    "head.prototypes": 65_536,
    "head.ibot_prototypes": None,
    "head.bottleneck": 256,
    "loss.koleo_group": "effective",  # ours; see docs/dinov3.md
    "teacher.momentum": 0.992,
    "teacher.momentum_end": 1.0,
    "optim.lr": 0.004,
    "optim.weight_decay_end": 0.4,
    "optim.layer_decay": 0.9,
    "optim.beta2": 0.999,
    "optim.clip": 3.0,
}


@pytest.mark.parametrize("images", [1000, MANY])
def test_the_presets_of_both_recipes_have_the_published_values(images):
    options, found = values("dinov3-7b", images)
    assert {name: found[name] for name in SEVEN_B} == SEVEN_B
    for preset in ("dinov3", "dinov3-vitl"):
        _, found = values(preset, images)
        assert {name: found[name] for name in VIT_L} == VIT_L, preset
    assert options.preset == "dinov3-7b"


def test_the_rate_of_the_7b_is_constant():
    """2e-4 at 1,024 (4e-4 at 4,096), constant after the warmup."""
    options, _ = values("dinov3-7b", train__effective_batch=4096, train__steps=100)
    rates = [values_at(step, options).lr for step in range(100)]
    assert rates[10:] == pytest.approx([4e-4] * 90)
    assert {values_at(step, options).momentum for step in (0, 99)} == {0.994}


@pytest.mark.parametrize(
    ("preset", "warmup", "frozen", "temperature"),
    [("dinov3", 100, 10, 300), ("dinov3-7b", 100, 5, 100)],
)
def test_shares_of_the_steps_are_the_published_ones(preset, warmup, frozen, temperature):
    """Of 100 epochs 10, 1 and 30 for the ViT-L, of 1,000 epochs 100, 5 and 100 for the 7B."""
    options, _ = values(preset, train__steps=1000)
    assert options.optim.warmup == warmup
    assert options.optim.freeze_last_layer == frozen
    assert options.teacher.temperature_warmup == temperature


def test_dinov3_and_dinov3_vitl_are_the_same_recipe():
    (_, one), (_, other) = values("dinov3"), values("dinov3-vitl")
    assert one | {"preset": ""} == other | {"preset": ""}


def test_heads_of_different_size(tmp_path):
    small = {
        "model__width": 32, "model__depth": 1, "model__heads": 2, "head__hidden": 16,
        "head__prototypes": 40, "head__ibot_prototypes": 24, "head__bottleneck": 12,
        "head__ibot_bottleneck": 8, "head__ibot_hidden": 20, "model__name": "vit-tiny",
    }  # fmt: skip
    options, _ = values("dinov3-7b", **small)
    student = build_student(options)
    assert tuple(student.dino_head.last_layer.shape) == (40, 12)
    assert tuple(student.ibot_head.last_layer.shape) == (24, 8)
    assert {len(weight) for weight in student.dino_head.mlp.parameters()} == {16, 12}
    assert {len(weight) for weight in student.ibot_head.mlp.parameters()} == {20, 8}
    state = first_centering(options, student, torch.device("cpu"))
    assert (len(state.dino.center_K), len(state.ibot.center_K)) == (40, 24)
    assert (state.dino.queue_QD.shape[1], state.ibot.queue_QD.shape[1]) == (12, 8)
    shape = HeadShape.of_both(student)
    assert (shape.prototypes, shape.bottleneck) == (40, 12)


def test_a_preset_whose_crops_the_patches_of_the_weights_do_not_divide_is_refused():
    options, _ = values("dinov3-7b")
    with pytest.raises(UserError) as error:
        check_patches(options, 14, 14)
    line = "views.global_size 256 is not a multiple of the patch size 14; nearest: 252, 266"
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("name", "wrong", "line"),
    [
        ("loss.regularizer", "sigrag", "loss.regularizer is one of koleo, sigreg, none; got"),
        ("optim.clip_scope", "head", "optim.clip_scope is one of part, joint; got 'head'"),
        ("model.rope_scope", "layer", "model.rope_scope is one of block, forward; got 'layer'"),
        ("views.blur_unit", "mm", "views.blur_unit is one of pixels, scaled; got 'mm'"),
        (
            "preset",
            "dinov3-vits",
            "preset is one of auto, try, small, dinov3, dinov3-vitl",
        ),
        ("views.early_share", 1.5, "views.early_share: "),
        ("loss.sigreg_knots", 1, "loss.sigreg_knots: "),
    ],
)
def test_values_that_are_not_known_are_one_line(name, wrong, line):
    with pytest.raises(UserError) as error:
        resolve({name: wrong}, Facts(1000))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_advice_names_the_regularizer_that_is_used():
    for regularizer, option in (
        ("koleo", "loss.koleo_weight=0.2"),
        ("sigreg", "loss.sigreg_weight=0.1"),
        ("none", "loss.regularizer=koleo"),
    ):
        options, _ = values("dinov3", loss__regularizer=regularizer, train__steps=10)
        assert any(option in line for line in advice("dimensional", options)), regularizer
