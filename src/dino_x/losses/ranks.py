"""The processes that share one effective batch, or this one alone."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """Exact sums, maxima and gathers over a process group; without one they change nothing."""

    group: dist.ProcessGroup | None

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def share(self, total: int) -> slice:
        """The share of ``total`` things that this process does, sizes differing by one at most."""
        return share_of(total, self.rank, self.world_size)

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.group is not None:
            dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self.group)
        return values

    def max_(self, values: Tensor) -> Tensor:
        """Largest over processes, in place."""
        if self.group is not None:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def numbers(self, own: list[int], device: torch.device) -> list[list[int]]:
        """A short list of whole numbers from every process."""
        if self.group is None:
            return [own]
        row = torch.tensor(own, device=device)
        rows = [torch.empty_like(row) for _ in range(self.world_size)]
        dist.all_gather(rows, row, group=self.group)
        return torch.stack(rows).tolist()

    def concatenate(self, values: Tensor) -> Tensor:
        """Rows of all processes in the order of their ranks; processes may have unequal numbers."""
        if self.group is None:
            return values
        lengths = [length for (length,) in self.numbers([len(values)], values.device)]
        padded = values.new_zeros(max(lengths), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def share_of(total: int, number: int, count: int) -> slice:
    """The share of ``total`` things that one of ``count`` has, sizes differing by one at most.

    >>> [share_of(16, number, 3) for number in range(3)]
    [slice(0, 5, None), slice(5, 10, None), slice(10, 16, None)]
    """
    return slice(total * number // count, total * (number + 1) // count)


ALONE = Ranks(None)
