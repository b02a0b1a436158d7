"""The processes of a run, as the exact step sees them: replicated or sharded networks.

Both tell each other of errors at the end of each pass, so that none continues without the others.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from torch import Tensor, nn

from dino_x.distributed.agreement import Agreement
from dino_x.exact.processes import Processes

T = TypeVar("T")


class Replicated(Processes):
    """Processes that each hold whole networks; a run of one process is of this kind, too.

    Args:
        agreement: how the processes agree on errors.
    """

    def __init__(self, agreement: Agreement) -> None:
        super().__init__(agreement.ranks.group)
        self.agreement = agreement

    def phase(self) -> AbstractContextManager:
        """A context for the work of one pass, at whose end errors are exchanged."""
        return self.agreement.part()


class Sharded(Replicated):
    """Processes that each hold a part of the networks, and so wait for each other everywhere.

    FSDP sums gradients in each micro-batch, so all processes go through equally many forwards and
    backwards. Errors are exchanged before each of these.
    """

    keep_graphs = False  # weights that a graph holds on to would stay gathered

    def __init__(self, agreement: Agreement) -> None:
        super().__init__(agreement)
        self._held_back: tuple[Tensor, Tensor] | None = None

    def phase(self) -> AbstractContextManager:
        """A context for the work of one pass, in which the processes wait for each other."""
        return self.agreement.part(joint=True)

    def alone(self) -> AbstractContextManager:
        """A context for the work of one process between forwards and backwards of all."""
        return self.agreement.part()

    def each(self, micro_batches: Iterable[T]) -> Iterator[T]:
        """Yields the micro-batches of a pass, each once all processes have one."""
        waiting = iter(micro_batches)
        while True:
            with self.alone():
                micro = next(waiting, None)
            if micro is None:
                return
            yield micro

    def hold_back(self, features: Tensor) -> Tensor:
        """Detach features of the local crops: their backward comes after that of the global crops.

        In one backward no block's gradient is whole before both kinds of crops have been through
        it, and FSDP cannot shard it before.
        """
        if not features.requires_grad:
            return features
        leaf = features.detach().requires_grad_()
        self._held_back = (features, leaf)
        return leaf

    def backward(self, loss: Tensor) -> None:
        """Run the backward of one micro-batch's loss, and then of the features held back."""
        held_back, self._held_back = self._held_back, None
        super().backward(loss)
        if held_back is not None and loss.requires_grad:
            features, leaf = held_back
            features.backward(leaf.grad)

    def sum_gradients(self, student: nn.Module) -> None:
        """Do nothing: FSDP has summed the gradients."""


def processes_of(agreement: Agreement, *, sharded: bool) -> Replicated:
    """The processes of a run, with sharded or with whole networks."""
    if sharded:
        return Sharded(agreement)
    return Replicated(agreement)
