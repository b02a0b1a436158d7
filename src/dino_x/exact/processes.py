"""The processes that share an effective batch: what they gather and sum, and when.

The step is written for one process. Everything that several of them need between the lines of the
mathematics is here. ``Processes`` is both one process alone and several that each hold whole
networks and a share of the images: a process more is like more micro-batches. Networks that are
sharded over the processes are another form, which overrides what differs.

V: views, b: images of this process, B: of all processes, m and M: masked patches of these, X: any
number of features.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dino_x.losses.ranks import ALONE, Ranks

MESSAGE_ELEMENTS = 2**24  # gradients summed over processes in one message: 64 MiB in float32

T = TypeVar("T")


class Processes:
    """One process alone, or the processes of a group that each hold whole networks.

    Args:
        group: the processes that share the effective batch; None is this process alone.

    Attributes:
        keep_graphs: whether a forward's graph may outlast other forwards.
    """

    keep_graphs = True

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.ranks = ALONE if group is None else Ranks(group)

    def phase(self) -> AbstractContextManager:
        """Surrounds the work of one pass, at whose end the processes meet."""
        return nullcontext()

    def alone(self) -> AbstractContextManager:
        """Surrounds what each process does by itself within a pass."""
        return nullcontext()

    def each(self, micro_batches: Iterable[T]) -> Iterator[T]:
        """The micro-batches of a pass, one after the other."""
        yield from micro_batches

    def gather_views(self, rows_VbX: Tensor) -> Tensor:
        """Rows of the images of all processes in the order of the batch, [V, B, X]."""
        return self.ranks.concatenate(rows_VbX.transpose(0, 1)).transpose(0, 1)

    def gather_patches(self, rows_mX: Tensor, places_m: Tensor) -> Tensor:
        """Rows of the masked patches of all processes, [M, X], in the order of their places.

        The order then depends on neither micro-batches nor processes.
        """
        order_M = self.ranks.concatenate(places_m).argsort()
        return self.ranks.concatenate(rows_mX)[order_M]

    def own_images(self, rows_VBX: Tensor) -> Tensor:
        """The rows of this process's images, [V, b, X], among those of all processes."""
        return rows_VBX[:, self.ranks.share(rows_VBX.shape[1])]

    def hold_back(self, features: Tensor) -> Tensor:
        """Features whose backward may have to come after that of all else; here it need not."""
        return features

    def backward(self, loss: Tensor) -> None:
        """The backward of one micro-batch's loss."""
        if loss.requires_grad:  # not if nothing that is trained has a loss
            loss.backward()

    def sum_terms(
        self, terms: dict[str, Tensor], names: Sequence[str], device: torch.device
    ) -> dict[str, Tensor]:
        """Loss terms summed over processes; a process may lack a term that others have."""
        if self.ranks.world_size == 1:
            return terms
        none = torch.zeros((), device=device)
        values = self.ranks.sum_(torch.stack([terms.get(name, none) for name in names]))
        present = self.ranks.numbers([int(name in terms) for name in names], device)
        return {name: values[i] for i, name in enumerate(names) if any(row[i] for row in present)}

    def sum_gradients(self, student: nn.Module) -> None:
        """The gradients of all processes, summed, in each of them; sent in few messages.

        A weight that has a gradient in no process keeps none, as with one process.
        """
        if self.ranks.world_size == 1:
            return
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        waiting = self._with_a_gradient_anywhere(weights)
        for weight in waiting:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        while waiting:
            message = [waiting.pop(0)]
            size = message[0].numel()
            while waiting and size + waiting[0].numel() <= MESSAGE_ELEMENTS:
                message.append(waiting.pop(0))
                size += message[-1].numel()
            self._sum_in_one_message([weight.grad for weight in message if weight.grad is not None])

    def _with_a_gradient_anywhere(self, weights: list[nn.Parameter]) -> list[nn.Parameter]:
        here = torch.tensor([float(w.grad is not None) for w in weights], device=weights[0].device)
        anywhere = self.ranks.max_(here).tolist()
        return [weight for weight, has in zip(weights, anywhere, strict=True) if has]

    def _sum_in_one_message(self, gradients: list[Tensor]) -> None:
        summed = self.ranks.sum_(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = summed.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
