"""Counted operations against torch.utils.flop_counter, on the real step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from dino_x.config.resolve import Facts, resolve
from dino_x.cost import flops
from dino_x.cost.shapes import Step
from dino_x.model.backbone import ForwardRandomness
from dino_x.model.teacher import build_student
from dino_x.training.schedules import values_at
from tests.cost.steps import step_of, steps_of

aten = torch.ops.aten


def _backward_of_attention(*shapes, **_):
    return flop_counter.sdpa_backward_flop_count(*shapes[:4])


# PyTorch's table has CUDA's fused attention, not the CPU's, nor what the losses add in place.
CPU_TOO = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: (
        flop_counter.sdpa_flop_count(q, k, v)
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_of_attention,
    aten.addmm_: lambda _, a, b, **__: flop_counter.mm_flop(a, b),
    aten.addmv_: lambda _, a, b, **__: 2 * a[0] * a[1],
    aten.mv: lambda a, b, **__: 2 * a[0] * a[1],
}


def counted(work) -> float:
    """As PyTorch counts."""
    with FlopCounterMode(display=False, custom_mapping=CPU_TOO) as counter:
        work()
    return counter.get_total_flops()


def as_drawn(steps, number: int) -> Step:
    """The step as numbers, with the share of branches that its draws really keep."""
    step, plan = step_of(steps), steps.plan(number)
    sizes = plan.sizes
    kept = [(plan.global_keep_LBV.mean(), 2 * step.student.tokens(sizes.global_size))]
    if step.locals:
        tokens = step.locals * step.student.tokens(sizes.local_size)
        kept.append((plan.local_keep_LBV.mean(), tokens))
    keep = sum(share * tokens for share, tokens in kept) / sum(tokens for _, tokens in kept)
    model = step.options.model.model_copy(update={"drop_path": 1 - keep})
    return replace(step, options=step.options.model_copy(update={"model": model}))


@pytest.mark.parametrize(
    ("micro_batch", "settings"),
    [
        (4, {}),
        (8, {}),  # KoLeo needs no second pass
        (2, {"views__local_crops": 0}),
        (4, {"model__name": "vits16", "model__depth": 2, "train__precision": "bf16"}),
        # Sinkhorn's logits do not fit, and are made anew in each sweep.
        (
            8,
            {
                "head__prototypes": 32768,
                "model__depth": 1,
                "train__effective_batch": 32,
                "head__bottleneck": 64,
            },
        ),
        (4, {"loss__centering": "softmax", "loss__queue": 64}),
        (4, {"gram__weight": 1.0, "gram__size": 160}),
        (4, {"loss__ibot_weight": 0}),
        (4, {"model__drop_path": 0.0}),
        (4, {"model__drop_path": 0.5}),
        (4, {"train__activation_checkpointing": True}),
    ],
)
def test_a_step(tmp_path, micro_batch, settings):
    steps = steps_of(
        tmp_path, micro_batch, views__blur=0.0, views__blur_global=(0.0, 0.0), **settings
    )
    values = values_at(3, steps.options)
    found = counted(lambda: steps.gradients(3, values)) / steps.options.train.effective_batch
    parts = flops.by_part(as_drawn(steps, 3))
    assert sum(parts.values()) == pytest.approx(found, rel=0.03), parts


@pytest.mark.parametrize("name", ["vit-tiny", "vits16", "vitb16"])
@pytest.mark.parametrize(
    ("side", "looked", "dropped"), [(96, None, 0), (224, None, 0), (224, 5, 0), (96, 1, 1)]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_backbone_exactly(name, side, looked, dropped, recompute):
    """Forward and backward of two crops, to the last operation."""
    settings = {"model.name": name, "model.depth": 2, "model.drop_path": 0.5, "train.steps": 1}
    options = resolve(settings, Facts(10)).options
    student = build_student(options)
    student.backbone.recompute = recompute
    step = Step.of(options, student, canvas=side)
    crops = torch.rand(2, 3, side, side)
    keep = np.ones((2, 2, 2), bool)
    keep[:, :, :dropped] = False
    patches = None if looked is None else np.arange(2 * (looked - 1))  # of the first crop

    def once():
        cls, patch_tokens = student.backbone(crops, None, ForwardRandomness(keep, 1.0), patches)
        (cls.sum() + patch_tokens.sum()).backward()

    how = (looked, keep.mean())
    expected = 2 * flops.training(step.student, side, *how)
    expected += 2 * recompute * flops.again(step.student, side, *how)
    assert counted(once) == expected
    with torch.no_grad():
        forward = counted(
            lambda: student.backbone(crops, None, ForwardRandomness(keep, 1.0), patches)
        )
    assert forward == 2 * flops.forward(step.student, side, *how)


def test_a_vit_s_with_65536_prototypes():
    """The figures that docs/plan.md explains."""
    settings = {"preset": "dinov3", "train.steps": 10, "loss.centering": "sinkhorn"}
    options = resolve(settings | {"model.drop_path": 0.1}, Facts(100)).options
    with torch.device("meta"):
        student = build_student(options)
    parts = flops.by_part(Step.of(options, student, micro_batch=16, canvas=400))
    giga = {name: round(value / 1e9, 1) for name, value in parts.items()}
    assert giga == {
        "teacher": 18.8, "student, for KoLeo": 15.0, "student, global crops": 48.8,
        "student, local crops": 36.4, "heads": 2.9, "loss over prototypes": 9.2,
        "Sinkhorn-Knopp": 6.2,
    }  # fmt: skip


def test_what_a_step_needs_is_what_it_computes_without_what_it_computes_again():
    """In one micro-batch, with few prototypes: but for tokens that nobody looks at."""
    settings = {"preset": "dinov3", "train.steps": 10, "loss.centering": "softmax"}
    options = resolve(
        settings | {"model.drop_path": 0.2, "loss.ibot_weight": 0}, Facts(100)
    ).options
    with torch.device("meta"):
        student = build_student(options)
    step = Step.of(options, student, micro_batch=256, canvas=400)
    parts = flops.by_part(step)
    vit = step.student
    unseen = 2 * (vit.tokens(224) - step.looked(step.largest)) + 8 * (vit.tokens(96) - 1)
    computed = sum(parts.values()) + 0.8 * 3 * 2 * unseen * vit.after_attention
    assert flops.needed(step) == pytest.approx(computed, rel=0.01)
    dropped = replace(step, micro_batch=16)
    assert sum(flops.by_part(dropped).values()) > sum(parts.values())
    assert flops.needed(dropped) == flops.needed(step)


def test_several_sizes_count_by_their_share():
    sets = [
        {"global_size": 224, "local_size": 96, "weight": 3},
        {"global_size": 448, "local_size": 96, "weight": 1},
    ]
    settings = {"preset": "dinov3", "train.steps": 10}
    one, two = ({"views.sizes": [size]} for size in sets)
    parts = []
    for views in (one, two, {"views.sizes": sets}):
        options = resolve(settings | views, Facts(100)).options
        with torch.device("meta"):
            student = build_student(options)
        parts.append(sum(flops.by_part(Step.of(options, student, canvas=400)).values()))
    assert parts[2] == pytest.approx((3 * parts[0] + parts[1]) / 4)
