"""A GPU that is not there: PyTorch's fake tensors know devices and shapes, and no numbers.

It needs a PyTorch built for CUDA, and no GPU. Operations of tensors that lie on two devices, and
numbers that are read of the GPU in another way than by ``transfer.read``, are errors. Backwards
are left out, for autograd wants a real device.
"""

from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dino_x.exact.processes import Processes
from dino_x.losses import fused_cross_entropy, gram, memory, sinkhorn_sweeps, transfer
from tests.equivalence.bench import Bench

GPU = torch.device("cuda", 0)


class OnTheGpu(TorchDispatchMode):
    """What is asked of the GPU goes to fake tensors, all else is computed as ever."""

    def __init__(self, fake):
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(on_the_gpu(part) for part in tree_leaves((args, kwargs))):
            with self.fake:
                return function(*args, **kwargs)
        return function(*args, **kwargs)


def on_the_gpu(part):
    return isinstance(part, FakeTensor) or (isinstance(part, torch.device) and part.type == "cuda")


def moved(tensor, fake):
    """A tensor of the same shape on the GPU."""
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def move(network, fake):
    for module in network.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                there = torch.nn.Parameter(moved(weight, fake), weight.requires_grad)
                module._parameters[name] = there
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = moved(buffer, fake)


@contextmanager
def pretended(monkeypatch):
    """A context in which a GPU seems to be there; gives the list of what is read of it."""
    reads = []

    def read(values):
        reads.append(tuple(values.shape))
        return True if values.dtype == torch.bool else [1.0] * values.numel()

    monkeypatch.setattr(transfer, "read", read)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Processes, "backward", lambda processes, loss: None)
    monkeypatch.setattr(
        torch.autograd, "grad", lambda value, inputs, *_, **__: (torch.zeros_like(inputs),)
    )
    sigreg = import_module("dino_x.losses.sigreg")  # whose function has the same name
    for module in (memory, fused_cross_entropy, gram, sinkhorn_sweeps, sigreg):
        monkeypatch.setattr(module, "working_bytes", lambda device: memory.CPU_BYTES)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with OnTheGpu(fake):
        yield fake, reads


def bench_on(fake, **settings):
    """A bench whose networks are on the GPU that is not there."""
    bench = Bench(train__precision="fp32", **settings)
    networks = [bench.steps.student, bench.steps.teacher]
    if "gram__weight" in settings:
        bench.take_gram_teacher()
        networks.append(bench.steps.gram.backbone)
    for network in networks:
        move(network, fake)
    bench.steps.cutter = replace(bench.steps.cutter, device=GPU)
    heads = {
        name: replace(
            head, center_K=moved(head.center_K, fake), queue_QD=moved(head.queue_QD, fake)
        )
        for name, head in vars(bench.state).items()
    }
    bench.state = replace(bench.state, **heads)
    return bench
