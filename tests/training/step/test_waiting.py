"""A step does not wait for its device: what it reads does not grow with the micro-batches."""

import pytest
import torch

from dino_x.training.step.probe import Probe
from tests.equivalence.bench import Bench
from tests.training.step import pretended
from tests.training.step.waiting import counted_reads, no_waits

READS_OF_A_STEP = 4  # a check of each head's Sinkhorn-Knopp, the checks for NaN, the terms
SETTINGS = {
    "plain": {},
    "softmax": {"loss__centering": "softmax"},
    "KoLeo within micro-batches": {"loss__koleo_group": 2},
    "SIGReg": {"loss__regularizer": "sigreg"},
    "no SIGReg across micro-batches": {"loss__regularizer": "none", "loss__local_weight": 0.5},
    "Gram": {"gram__weight": 2.0, "gram__warmup": 0, "gram__size": 48},
    "reference": {"loss__implementation": "reference"},
}


def prepared(device, **settings):
    """A bench, with a Gram teacher where there is to be one."""
    bench = Bench(device, train__precision="fp32", **settings)
    if "gram__weight" in settings:
        bench.take_gram_teacher()
    return bench


def gradient(bench, size):
    """A step whose rows are looked at, too."""
    bench.steps.exact_step.gradient(
        bench.batch(size),
        bench.state,
        bench.temperature,
        bench.steps.gram_term(bench.options.gram.weight),
        Probe.of(16, 10),
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_what_a_step_reads_does_not_grow_with_its_micro_batches(settings):
    bench = prepared(torch.device("cpu"), **settings)
    found = {}
    for size in (4, 16):
        with counted_reads() as found[size]:
            gradient(bench, size)
    assert set(found[4]) == {"read"}, found[4]
    assert found[4] == found[16]
    assert found[4]["read"] <= READS_OF_A_STEP


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_a_gpu_nothing_else_waits(settings):
    bench = prepared(torch.device("cuda", 0), **settings)
    gradient(bench, 2)  # libraries wait when they are first used
    with no_waits():
        gradient(bench, 2)


@pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(),
    reason="for a PyTorch built for CUDA on a machine without a GPU",
)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_on_a_gpu_that_is_not_there_nothing_else_is_read_and_devices_never_mix(
    settings, monkeypatch
):
    with pretended.pretended(monkeypatch) as (fake, reads):
        bench = pretended.bench_on(fake, **settings)
        reads.clear()
        gradient(bench, 2)
    assert 1 <= len(reads) <= READS_OF_A_STEP


def test_the_counter_sees_what_a_gpu_would_wait_for():
    values, mask = torch.arange(6.0), torch.arange(6) > 2
    waits = [
        lambda: values[0].item(), lambda: bool(mask.any()), lambda: values.tolist(),
        lambda: mask.nonzero(), lambda: values[mask], lambda: float(values.sum()),
        lambda: torch.equal(values, values),
    ]  # fmt: skip
    for wait in waits:
        with counted_reads() as found:
            wait()
        assert sum(found.values()) >= 1
    with counted_reads() as found:
        values.cumsum(0).index_select(0, torch.tensor([1, 2])).sum()
    assert not found
