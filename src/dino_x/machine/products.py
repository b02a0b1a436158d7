"""How fast matrices of float32 are multiplied: which library does it, and from how many digits.

PyTorch multiplies matrices on a CPU with Intel's MKL, which on AMD's processors uses half of their
width (AVX2 where they have AVX-512). oneDNN, which every PyTorch for x86 holds as well, uses all
of it and is twice as fast there. PyTorch takes it where it is allowed to round factors to bfloat16,
and oneDNN then rounds on processors with matrix units for bfloat16 (AMX) alone. So it is allowed
where it does not happen, and whether it does is measured.
"""

import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from dino_x.machine.system import address_space_limit

EXACT, ROUNDED, TENSOR_CORES = "highest", "medium", "high"  # PyTorch's names
LEAST_DIGITS = 1e-5  # relative error: float32 has 1e-7, factors in bfloat16 give 1e-3
CPU_INFO = Path("/proc/cpuinfo")


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """A context in which matrices of float32 are multiplied by the fastest library, as exactly.

    It does nothing on a GPU, and where PyTorch was told already how to multiply.
    """
    if device.type != "cpu" or not _as_exact_and_faster() or _chosen() != EXACT:
        yield
        return
    with _products(ROUNDED):
        yield


def are_fast() -> bool:
    """Whether this is within ``fast_products``, and they are other than PyTorch's own choice."""
    return _chosen() == ROUNDED and _as_exact_and_faster()


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """A context in which a GPU may multiply matrices of float32 on its tensor cores (TF32).

    Factors are rounded to 11 digits (bfloat16: 8), and sums are in float32.
    """
    if device.type != "cuda" or _chosen() != EXACT:
        yield
        return
    with _products(TENSOR_CORES):
        yield


@contextmanager
def _products(how: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(how)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _chosen() -> str:
    """What PyTorch was told; nothing that is known here if it was told by its newer settings."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "other"


@cache
def _as_exact_and_faster() -> bool:
    """Whether oneDNN is faster than MKL here, and as exact."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (has_both and wide and _vendor() == "AuthenticAMD"):
        return False
    if math.isfinite(address_space_limit()):  # oneDNN keeps code for each shape: some 0.5 GiB
        return False
    drawn = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=drawn)
    with _products(ROUNDED):
        product = a @ b
    exact = a.double() @ b.double()
    return bool((product - exact).abs().max() <= LEAST_DIGITS * exact.abs().max())


def _vendor(info: Path = CPU_INFO) -> str:
    """The maker of the processor, as it calls itself; "" where that is not known."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return "AuthenticAMD" if "AuthenticAMD" in platform.processor() else ""  # Windows
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
