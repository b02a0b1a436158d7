"""What the processes of a run tell each other in every step, so that none goes on without others.

Between two exchanges a process computes by itself. At the next one all learn whether one of them
met something it cannot go on with, or was asked to stop, and all draw the same conclusion.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dino_x.distributed.world import gather_objects
from dino_x.errors import SaidElsewhereError, UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.machine.out_of_memory import OutOfMemory, caught

FINE, NOT_FINITE, GIVES_UP, NO_MEMORY = 0, 1, 2, 3
Trouble = NotFiniteError | UserError | OutOfMemory


@dataclass
class Agreement:
    """Of the processes of one run.

    Attributes:
        ranks: the processes.
        device: of the exchanged numbers.
        asked: the number of the signal that asked this process to stop, or 0.
        stop: the signal for which all have agreed to stop, or 0.
        exchanges: how many there were.
        kept: what this process met where others do not wait for it; told at the next exchange.
    """

    ranks: Ranks = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    asked: Callable[[], int] = lambda: 0
    stop: int = 0
    exchanges: int = 0
    kept: UserError | OutOfMemory | None = None

    @contextmanager
    def part(self, *, joint: bool = False) -> Iterator[None]:
        """Work that every process does, with an exchange at its end.

        Args:
            joint: whether the processes wait for each other in it, too. One that is out of memory
                then has no exchange to come to. It raises at once and has to end, for which the
                others, who wait for it elsewhere, end as well.

        Raises: in every process what one of them raised: OutOfMemory, the UserError of the first
            that gave up, which the first process says, or NotFiniteError, in this order.
        """
        trouble: Trouble | None = None
        try:
            with caught():
                yield
        except OutOfMemory as error:
            if joint and not error.told:
                raise
            trouble = OutOfMemory(str(error))  # without the frames, which hold the activations
        except (NotFiniteError, UserError) as error:
            trouble = error
        self.exchange(trouble)

    @contextmanager
    def this_rank_only(self, *, joint: bool = False) -> Iterator[None]:
        """Work that only this process does: what it cannot go on with is told at the next exchange.

        Args:
            joint: see ``part``.

        Raises: UserError or OutOfMemory at once if there are no others.
        """
        try:
            with caught():
                yield
        except (UserError, OutOfMemory) as error:
            if self.ranks.world_size == 1 or (joint and isinstance(error, OutOfMemory)):
                raise
            kept = OutOfMemory(str(error)) if isinstance(error, OutOfMemory) else error
            self.kept = self.kept or kept

    def exchange(self, trouble: Trouble | None = None) -> None:
        """Tell the others of some trouble, or of none; see ``part``."""
        if not isinstance(trouble, OutOfMemory):
            trouble = self.kept or trouble
        own = severity(trouble)
        told = self.ranks.numbers([own, self.asked()], self.device)
        self.exchanges += 1
        self.stop = self.stop or max(signal for _, signal in told)
        worst = max(state for state, _ in told)
        if worst == FINE:
            return
        if self.ranks.world_size == 1:
            assert trouble is not None
            raise trouble
        if worst == NOT_FINITE:
            raise trouble or NotFiniteError("not finite in another process")
        if worst == NO_MEMORY:
            rank = next(n for n, (state, _) in enumerate(told) if state == NO_MEMORY)
            message = str(trouble) if rank == self.ranks.rank else f"in process {rank}"
            raise OutOfMemory(message, told=True)
        messages = gather_objects(self.ranks, str(trouble) if own == GIVES_UP else None)
        rank, message = next((n, text) for n, text in enumerate(messages) if text is not None)
        kind = UserError if self.ranks.rank == 0 else SaidElsewhereError
        raise kind(message if rank == 0 else f"process {rank}: {message}")


def severity(trouble: Trouble | None) -> int:
    """What is told of some trouble: of several, the largest counts."""
    if trouble is None:
        return FINE
    if isinstance(trouble, OutOfMemory):
        return NO_MEMORY
    return GIVES_UP if isinstance(trouble, UserError) else NOT_FINITE
