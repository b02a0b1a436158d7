"""Numbers between the host and a GPU, so that the host does not wait for what the GPU computes.

A copy from ordinary memory, and every read of a result, holds the host until the GPU has done all
that it was asked for; meanwhile nothing new is asked for. So what is sent goes through pinned
memory, and a step reads in a few places only, each of which calls ``read``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def there(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of the host on a device; a GPU receives them while it computes.

    Args:
        values: a tensor or an array; what is on the device already stays as it is.
        device: where they are wanted.
        dtype: of the result; that of the values if None.
    """
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device=device, dtype=dtype, non_blocking=True)


def all_there(parts: Sequence[Any], device: torch.device) -> list[Tensor]:
    """Several one-dimensional arrays of one type on a device, sent as one message."""
    tensors = [torch.as_tensor(part) for part in parts]
    if device.type == "cpu" or not tensors:
        return tensors
    return list(there(torch.cat(tensors), device).split([len(tensor) for tensor in tensors]))


def read(values: Tensor) -> Any:
    """Numbers of a device as Python's own; on a GPU the host waits for them."""
    return values.tolist()
