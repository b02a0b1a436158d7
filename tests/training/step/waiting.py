"""Does the host wait for its device? On a GPU PyTorch says so; on a CPU the reads are counted."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dino_x.losses import transfer

READS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "nonzero",
         "equal", "allclose", "unique", "masked_select", "argwhere"}  # fmt: skip
READ_KERNELS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}


@contextmanager
def no_waits():
    """A context in which the host may wait for a GPU in ``transfer.read`` alone."""
    plain = transfer.read

    def allowed(values):
        torch.cuda.set_sync_debug_mode("default")
        try:
            return plain(values)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    transfer.read = allowed
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        transfer.read = plain
        torch.cuda.set_sync_debug_mode("default")


class Calls(TorchFunctionMode):
    """Counts what Python asks of tensors that a GPU would have to answer."""

    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in READS:
            self.counted[name] += 1
        return function(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Counts kernels whose result the host has to know."""

    def __init__(self, counted):
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in READ_KERNELS:
            self.counted[f"aten {name}"] += 1
        if name in ("index", "index_put_") and any(is_mask(part) for part in args[1]):
            self.counted["index by a mask"] += 1
        return function(*args, **(kwargs or {}))


def is_mask(index):
    """Whether an index is a mask, whose true values have to be counted first."""
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def counted_reads():
    """A context that counts reads, by kind; those of ``transfer.read`` are ``read``."""
    found = Counter()
    plain = transfer.read

    def read(values):
        found["read"] += 1
        return values.detach().numpy().tolist()

    transfer.read = read
    try:
        with Calls(found), Kernels(found):
            yield found
    finally:
        transfer.read = plain
