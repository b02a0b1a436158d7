"""The machine: device, precision, memory."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from dino_x.errors import UserError
from dino_x.machine.products import tensor_cores
from dino_x.machine.system import peak_resident_bytes

GIB = 2**30


def choose_device(name: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``mps``.

    ``auto`` never takes mps, the GPU of an Apple computer: no test has run on one.

    Raises: UserError if there is no GPU that PyTorch can use.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("no GPU that PyTorch can use; choose --device cpu or auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("PyTorch has no GPU of an Apple computer here; choose --device cpu or auto")
    if name == "auto":
        name = "cuda" if has_gpu else "cpu"
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """The name of the GPU, or how many CPU threads there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "the GPU of an Apple computer"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


def dtype_of(precision: str) -> torch.dtype:
    """The type of weights and views: float64 for fp64, else float32 (bf16 is mixed precision)."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A function that opens the context in which a forward runs."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext


def loss_products(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A function that opens the context in which tokens are multiplied with prototypes.

    They are float32 in every precision. With bf16, whose tokens have fewer digits than TF32, a GPU
    may use its tensor cores, which are some eight times as fast.
    """
    if precision == "bf16":
        return lambda: tensor_cores(device)
    return nullcontext


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return peak_resident_bytes() / GIB


@contextmanager
def limited_memory(device: torch.device, spared: float) -> Iterator[None]:
    """A context in which ``spared`` of a GPU's free bytes cannot be allocated."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    usable = free + torch.cuda.memory_reserved(device) - spared
    torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, usable / total)), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
