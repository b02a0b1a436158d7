"""Calculated memory against what PyTorch's allocator was asked for."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dino_x.planning import memory
from dino_x.planning.memory import Numerics
from dino_x.training.schedules import values_at
from tests.planning.steps import step_of, trainer_of

CPU = torch.device("cpu")
TOLERANCE = 0.1  # of the peak; these cases are 0.92 to 1.08 of it
BOTH = pytest.mark.parametrize("precision", ["fp32", "bf16"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measured(work) -> int:
    """The most bytes that were allocated at once, beyond those there were before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def both(tmp_path, micro_batch, **settings) -> tuple[float, float]:
    """Bytes of a step beyond weights and optimizer: calculated, and measured."""
    trainer = trainer_of(tmp_path, micro_batch, **settings)
    step, numerics = step_of(trainer), Numerics.on(trainer.options.train.precision, CPU)
    already = memory.optimizer(step, numerics)["optimizer (AdamW)"]
    already += memory.kept(step, numerics).get("queue", 0) / 2  # there before the step
    values = values_at(3, trainer.options)
    peak = measured(lambda: trainer.gradients(3, values))
    return memory.still_needed(step, numerics) - already, peak


@pytest.mark.parametrize(
    ("micro_batch", "precision", "settings"),
    [
        (1, "fp32", {}),
        (4, "bf16", {}),
        (8, "fp32", {}),  # the whole effective batch: no gradients while activations are held
        (8, "bf16", {}),
        (4, "fp32", {"views__local_crops": 0}),
        (4, "bf16", {"views__local_crops": 8, "model__depth": 2}),
        (4, "fp32", {"model__name": "vits16", "model__depth": 2}),
        # Here the gradients that wait for those of the global crops are what counts.
        (1, "fp32", {"model__name": "vitb16", "model__depth": 4, "head__hidden": 256}),
        (2, "bf16", {"model__name": "vitb16", "model__depth": 2, "head__hidden": 256}),
        (4, "fp32", {"head__prototypes": 8192, "head__normalize_prototypes": True}),
        (4, "fp32", {"loss__queue": 1024, "loss__koleo_weight": 0, "head__hidden": 256}),
        (4, "bf16", {"gram__weight": 1.0, "gram__size": 160, "head__hidden": 256}),
    ],
)
def test_the_peak_of_a_step(tmp_path, micro_batch, precision, settings):
    calculated, peak = both(tmp_path, micro_batch, train__precision=precision, **settings)
    assert calculated == pytest.approx(peak, rel=TOLERANCE)


@BOTH
@pytest.mark.parametrize("name", ["vit-tiny", "vits16"])
@pytest.mark.parametrize("side", [48, 112])
def test_what_the_backbone_keeps_for_its_backward(tmp_path, precision, name, side):
    """To a hundredth: this part is exact, but for the smallest tensors."""
    trainer = trainer_of(tmp_path, 4, model__name=name, train__precision=precision)
    backbone = trainer.student.backbone
    weights = {weight.untyped_storage().data_ptr() for weight in backbone.parameters()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        trainer.effective_batch.precision(),
    ):
        cls, _ = backbone(torch.rand(3, 3, side, side), None, None)
    tokens = cls.untyped_storage()  # what the losses look at
    held[tokens.data_ptr()] = tokens.nbytes()
    step, numerics = step_of(trainer), Numerics.on(precision, CPU)
    converted = 0
    if precision == "bf16":
        converted = 2 * step.student.depth * step.student.matrices
        converted += 2 * step.student.width * step.student.patch**2 * step.student.channels
    calculated = memory.of_crops(step.student, 3, side, numerics) + converted
    assert calculated == pytest.approx(sum(held.values()), rel=0.01)
