"""How much memory a loss may work in.

The sizes of tiles and chunks decide the order of summation, and so the last digits. They
depend on the device and on nothing that changes while it runs: a share of the memory that
happens to be free would make a resumed run differ from an uninterrupted one.
"""

import torch

CPU_BYTES = 24 * 2**20
CUDA_SHARE = 64  # of the device's whole memory: 384 MiB of 24 GiB


def working_bytes(device: torch.device) -> int:
    """24 MiB, or on CUDA a 64th of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // CUDA_SHARE
    return CPU_BYTES
