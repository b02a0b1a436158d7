"""How fast are products of float32 and attention on this CPU: as in PyTorch, and as in a run?

    python benchmarks/products.py [--repeats 9]

The ways take turns; figures are medians. On a processor where a run does as PyTorch does, both are
the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from dino_x.machine.device import describe_device
from dino_x.machine.products import fast_products
from dino_x.model.attention import attention

CPU = torch.device("cpu")
PRODUCTS = ((2048, 2048, 2048), (4112, 384, 1536), (3200, 1536, 384), (1088, 256, 1024))
CROPS = ((16, 257), (64, 50), (64, 17))  # crops, tokens
HEADS, FEATURES = 6, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    table = Table("", "PyTorch's own", "in a run", "times as fast", box=None)
    for rows, inside, columns in PRODUCTS:
        a, b = torch.randn(rows, inside), torch.randn(inside, columns)
        plain, fast = by_turns(partial(torch.mm, a, b), partial(torch.mm, a, b), repeats)
        billions = 2 * rows * inside * columns / 1e9
        cells = [f"{billions / seconds:.0f} GFLOP/s" for seconds in (plain, fast)]
        table.add_row(f"{rows} x {inside} x {columns}", *cells, f"{plain / fast:.2f}")
    for dtype in (torch.float32, torch.bfloat16):
        for crops, tokens in CROPS:
            qkv = torch.randn(crops, tokens, 3, HEADS, FEATURES, dtype=dtype, requires_grad=True)
            plain, fast = by_turns(
                partial(differentiated, theirs, qkv),
                partial(differentiated, attention, qkv),
                repeats,
            )
            name = f"attention, {crops} crops of {tokens} tokens, {str(dtype).split('.')[1]}"
            cells = [f"{1000 * seconds:.1f} ms" for seconds in (plain, fast)]
            table.add_row(name, *cells, f"{plain / fast:.2f}")
    console = Console()
    console.print(f"{describe_device(CPU)}, PyTorch {torch.__version__}; forward and backward")
    console.print(table)


def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """PyTorch's attention."""
    return functional.scaled_dot_product_attention(q, k, v, scale=scaling)


def differentiated(how: Callable[..., torch.Tensor], qkv: torch.Tensor) -> None:
    """Attention forward and backward, as a block has it."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    averaged = how(q, k, v, FEATURES**-0.5).transpose(1, 2).flatten(2)
    torch.autograd.grad(averaged.sum(), qkv)


def by_turns(
    plain: Callable[[], Any], fast: Callable[[], Any], repeats: int
) -> tuple[float, float]:
    """Median seconds of both ways."""
    ways: tuple[tuple[Callable[[], Any], Callable[[], AbstractContextManager]], ...] = (
        (plain, nullcontext), (fast, lambda: fast_products(CPU)),
    )  # fmt: skip
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(-1, repeats):  # the first one is to warm up
        for place, (way, context) in enumerate(ways):
            with context():
                started = time.perf_counter()
                way()
                took = time.perf_counter() - started
            if repeat >= 0:
                seconds[place].append(took)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
