"""Do the promises hold on this device? Gradients, losses and views, by the tests' own means."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_parts import right_runs
from benchmarks.gpu_parts.card import Card
from benchmarks.gpu_parts.results import Results
from dino_x.losses import prototype_cross_entropy
from dino_x.machine.device import dtype_of
from dino_x.training.step.batch_plan import MicroBatch
from tests.equivalence.bench import Bench, relative_error
from tests.training.step.waiting import no_waits

SIZES = (1, 2, 8)  # of micro-batches, besides all 16 images
EXACT = 1e-10
NEGATIVE = 1e-2
BF16 = 0.1  # error of a gradient whose forward has 8 bits, against float64
FP32 = 1e-3  # of two orders of summation in float32, after what the tiny network makes of it
FUSED_SHAPES = {True: (64, 509, 32), False: (1024, 65536, 256)}  # rows, prototypes, width


def measure(card: Card, results: Results, more: dict[str, str]) -> None:
    """Every check, most important first; each is a line."""
    bench = partial(Bench, card.device)
    results.each(
        {
            "gradient, Sinkhorn-Knopp, KoLeo over all": lambda: same_for_any_cut(bench, results),
            "gradient, softmax centering": lambda: same_for_any_cut(
                bench, results, "softmax centering", loss__centering="softmax"
            ),
            "gradient, KoLeo in groups of 4": lambda: same_for_any_cut(
                bench, results, "KoLeo in groups of 4", loss__koleo_group=4
            ),
            "gradient, Gram anchoring": lambda: same_for_any_cut(
                bench, results, "Gram anchoring", gram__weight=2.0, gram__warmup=0, gram__size=48
            ),
            "negative control": lambda: negative_control(bench, results),
            "fused losses": lambda: fused_losses(card, results, bench),
            "bf16 against float64": lambda: bf16(card, results, bench),
            "micro-batch 4 against 32, float32": lambda: four_against_32(results, bench),
            "views": lambda: views(card, results),
            "waits": lambda: waits(card, results, bench),
        }
    )
    right_runs.measure(card, results)


def same_for_any_cut(
    bench: partial, results: Results, name: str = "Sinkhorn-Knopp, KoLeo over all", **settings: Any
) -> None:
    """The gradient in micro-batches of several sizes against that of all images at once."""
    step = bench(**settings)
    if "gram__weight" in settings:
        step.take_gram_teacher()
    _, whole, _ = step.exact(16)
    worst = max(relative_error(step.exact(size)[1], whole) for size in SIZES)
    sizes = ", ".join(map(str, SIZES))
    what = f"gradient in float64, {name}: micro-batches of {sizes} against all 16 images"
    results.check(what, worst, below=EXACT)


def negative_control(bench: partial, results: Results) -> None:
    """Naive accumulation must have another gradient, or the checks above show nothing."""
    step = bench()
    _, whole, _ = step.exact(16)
    error = relative_error(step.naive(2)[1], whole)
    results.check("negative control: naive accumulation, micro-batches of 2", error, above=NEGATIVE)


def fused_losses(card: Card, results: Results, bench: partial) -> None:
    """The fused loss over prototypes against the one written out, alone and in a step."""
    rows, prototypes, width = FUSED_SHAPES[card.toy]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(shape, generator=generator).to(card.device)
        for shape in ((rows, width), (prototypes, width), (rows, width), (prototypes, width))
    ]
    bias_K = torch.zeros(prototypes, device=card.device)
    pairs_P2 = torch.arange(rows)[:, None].repeat(1, 2)

    def gradients(implementation: str, dtype: torch.dtype) -> Tensor:
        student_RD, student_KD, teacher_TD, teacher_KD = (t.to(dtype) / 4 for t in drawn)
        student_RD.requires_grad_()
        student_KD.requires_grad_()
        prototype_cross_entropy(
            student_RD, student_KD, teacher_TD, teacher_KD, bias_K.to(dtype), pairs_P2,
            student_temperature=0.4, teacher_temperature=0.2, implementation=implementation,
        ).backward()  # fmt: skip
        assert student_RD.grad is not None
        assert student_KD.grad is not None
        return torch.cat([student_RD.grad.flatten(), student_KD.grad.flatten()]).double()

    card.need_memory(rows * prototypes * 8 * 6 / 2**30)
    error = relative_error(gradients("fused", torch.float32), gradients("reference", torch.float64))
    results.check(
        f"gradient of the fused loss in float32, {rows:,} rows, {prototypes:,} prototypes, against"
        " the reference in float64", error, below=1e-5,
    )  # fmt: skip
    reference = bench(loss__implementation="reference").exact(2)[1]
    error = relative_error(bench().exact(2)[1], reference)
    results.check("gradient of a step, fused losses against the reference", error, below=EXACT)


def bf16(card: Card, results: Results, bench: partial) -> None:
    """What mixed precision does to a gradient, and that the micro-batch still does nothing."""
    card.need_bf16()
    exact = with_a_mask_token(bench()).exact(16)[1]
    mixed = with_a_mask_token(bench(train__precision="bf16"))
    found = {size: mixed.exact(size)[1].double() for size in (2, 16)}
    results.check("gradient in bf16 against float64", relative_error(found[16], exact), below=BF16)
    results.check(
        "gradient in bf16, micro-batches of 2 against all 16 images",
        relative_error(found[2], found[16]), below=BF16,
    )  # fmt: skip


def with_a_mask_token(bench: Bench) -> Bench:
    """A bench whose mask token is drawn, not 0 as in a new network.

    A masked patch of a new network is a token of zeros, whose LayerNorm makes whole features of
    what 8 bits round off: the gradient of its iBOT loss in bf16 then has little in common with the
    one in float64.
    """
    token = bench.steps.student.backbone.vit.embeddings.mask_token
    with torch.no_grad():
        token.copy_(torch.randn(token.shape, generator=torch.Generator().manual_seed(1)))
    return bench


def four_against_32(results: Results, bench: partial) -> None:
    """The promise as users have it: float32, and a micro-batch that is an eighth."""
    step = bench(train__precision="fp32", train__effective_batch=32)
    error = relative_error(step.exact(4)[1], step.exact(32)[1])
    results.check("gradient in float32, micro-batches of 4 against all 32", error, below=FP32)


def views(card: Card, results: Results) -> None:
    """Crops made on the GPU against those made on the CPU."""
    card.need_gpu()
    for precision, limit in (("fp64", EXACT), ("fp32", 1e-4)):
        there, here = (
            all_crops(Bench(device, train__precision=precision))
            for device in (card.device, torch.device("cpu"))
        )
        worst = max(
            float((one.cpu() - other).abs().max()) for one, other in zip(there, here, strict=True)
        )
        results.check(
            f"crops in {dtype_of(precision)}, GPU against CPU, largest difference", worst,
            below=limit,
        )  # fmt: skip


def all_crops(bench: Bench) -> list[Tensor]:
    """Global, local and Gram crops of a micro-batch."""
    micro: MicroBatch = next(iter(bench.micro_batches(8)))
    return [micro.global_crops(), micro.local_crops(), micro.gram_crops()]


def waits(card: Card, results: Results, bench: partial) -> None:
    """A step in which the host never waits for the GPU, but where it says that it reads."""
    card.need_gpu()
    step = bench(train__precision="fp32")
    step.exact(4)  # what waits only once, such as the first use of a library
    with no_waits():
        step.exact(4)
    results.found("waits of the host within the passes of a step", "none", "none", True)
