"""Counted operations against torch.utils.flop_counter, on the real step."""

import pytest
import torch
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from dino_x.model.teacher import build_student
from dino_x.planning import flops
from dino_x.planning.shapes import Step
from dino_x.presets import resolve
from dino_x.training.schedules import values_at
from tests.planning.steps import step_of, trainer_of

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
    ],
)
def test_a_step(tmp_path, micro_batch, settings):
    trainer = trainer_of(tmp_path, micro_batch, views__blur=0.0, **settings)
    values = values_at(3, trainer.options)
    found = counted(lambda: trainer.gradients(3, values)) / trainer.options.train.effective_batch
    parts = flops.by_part(step_of(trainer))
    assert sum(parts.values()) == pytest.approx(found, rel=0.03), parts


@pytest.mark.parametrize("name", ["vit-tiny", "vits16", "vitb16"])
@pytest.mark.parametrize("side", [96, 224])
def test_a_backbone_exactly(name, side):
    """Forward and backward of a crop, to the last operation."""
    options, _ = resolve({"model.name": name, "model.depth": 2, "train.steps": 1}, 10)
    student = build_student(options)
    step = Step.of(options, student, canvas=side)
    crop = torch.rand(1, 3, side, side)

    def once():
        cls, patches = student.backbone(crop, None, None)
        (cls.sum() + patches.sum()).backward()

    assert counted(once) == flops.training(step.student, side)
    with torch.no_grad():
        forward = counted(lambda: student.backbone(crop, None, None))
    assert forward == flops.forward(step.student, side)


def test_a_vit_s_with_65536_prototypes():
    """The figures that docs/plan.md explains."""
    said = {"preset": "dinov3", "train.steps": 10, "loss.centering": "sinkhorn"}
    options, _ = resolve(said, 100)
    with torch.device("meta"):
        student = build_student(options)
    parts = flops.by_part(Step.of(options, student, micro_batch=16, canvas=400))
    giga = {name: round(value / 1e9, 1) for name, value in parts.items()}
    assert giga == {
        "teacher": 18.8, "student, for KoLeo": 18.8, "student, global crops": 56.9,
        "student, local crops": 43.0, "heads": 2.9, "loss over prototypes": 9.2,
        "Sinkhorn-Knopp": 6.2,
    }  # fmt: skip


def test_several_sizes_count_by_their_share():
    sets = [
        {"global_size": 224, "local_size": 96, "weight": 3},
        {"global_size": 448, "local_size": 96, "weight": 1},
    ]
    said = {"preset": "dinov3", "train.steps": 10}
    one, two = ({"views.sizes": [size]} for size in sets)
    parts = []
    for views in (one, two, {"views.sizes": sets}):
        options, _ = resolve(said | views, 100)
        with torch.device("meta"):
            student = build_student(options)
        parts.append(sum(flops.by_part(Step.of(options, student, canvas=400)).values()))
    assert parts[2] == pytest.approx((3 * parts[0] + parts[1]) / 4)
