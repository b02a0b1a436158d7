"""One of two processes that share a batch.

python -m benchmarks.gpu_parts.sharing DEVICE BACKEND PORT

This is the second of the two; the first is the process that starts it.
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dino_x.losses.ranks import Ranks
from tests.equivalence.bench import Bench

COUNT = 2
TIMEOUT = timedelta(seconds=120)


def gradient_of_two(device: torch.device, backend: str, port: int, rank: int) -> Tensor:
    """The gradient of the effective batch, of which this process has a half."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=COUNT,
        timeout=TIMEOUT,
    )  # fmt: skip
    try:
        bench = Bench(device, Ranks(dist.group.WORLD))
        gradient: Tensor = bench.exact(4)[1]
        return gradient
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    gradient_of_two(torch.device(sys.argv[1]), sys.argv[2], int(sys.argv[3]), rank=1)
