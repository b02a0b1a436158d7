"""An exchange between the processes of a run in every step, so that none continues alone.

Between two exchanges a process computes by itself. At the next one all learn whether one of them
met an error that it cannot continue after, or was asked to stop, and all draw the same conclusion.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from dino_x.distributed.world import first_error, gather_objects
from dino_x.errors import UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.machine.out_of_memory import OutOfMemory, caught

FINE, NOT_FINITE, GIVES_UP, NO_MEMORY = 0, 1, 2, 3
Trouble = NotFiniteError | UserError | OutOfMemory


@dataclass
class Agreement:
    """The agreement of the processes of one run on errors and on stopping.

    Attributes:
        ranks: the processes.
        device: the device of the exchanged numbers.
        asked: returns the number of the signal that asked this process to stop, or 0.
        stop: the signal for which all have agreed to stop, or 0.
        exchanges: the number of exchanges so far.
        kept: an error that this process met while others did not wait for it; it is told at the
            next exchange.
    """

    ranks: Ranks = ALONE
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    asked: Callable[[], int] = lambda: 0
    stop: int = 0
    exchanges: int = 0
    kept: UserError | OutOfMemory | None = None

    @contextmanager
    def part(self, *, joint: bool = False) -> Iterator[None]:
        """The block is work that every process does, with an exchange at its end.

        Args:
            joint: whether the processes wait for each other in it, too. One that is out of memory
                then has no exchange to come to. It raises at once and has to end, for which the
                others, who wait for it elsewhere, end as well.

        Raises: in every process what one of them raised: OutOfMemory, the UserError of the first
            that gave up, which rank 0 prints, or NotFiniteError, in this order.
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
        """The block is work of this process alone; its errors are told at the next exchange.

        Args:
            joint: see ``part``.

        Raises: UserError or OutOfMemory at once if there are no others.
        """
        try:
            with caught():
                yield
        except OutOfMemory as error:
            if joint or self.ranks.world_size == 1:
                raise
            # A new error has no frames, which would hold the activations.
            self.kept = self.kept or OutOfMemory(str(error))
        except UserError as error:
            if self.ranks.world_size == 1:
                raise
            self.kept = self.kept or error

    def exchange(self, trouble: Trouble | None = None) -> None:
        """Tell the others of some trouble, or of none; see ``part``."""
        if not isinstance(trouble, OutOfMemory):
            trouble = self.kept or trouble
        told = self.ranks.numbers([severity(trouble), self.asked()], self.device)
        self.exchanges += 1
        severities = [state for state, _ in told]
        signals = [signal for _, signal in told]
        self.stop = self.stop or max(signals)
        worst = max(severities)
        if worst == FINE:
            return
        if self.ranks.world_size == 1:
            assert trouble is not None
            raise trouble
        if worst == NOT_FINITE:
            raise trouble or NotFiniteError("not finite in another process")
        if worst == NO_MEMORY:
            self._raise_out_of_memory(trouble, severities.index(NO_MEMORY))
        self._raise_first_message(trouble)

    def _raise_out_of_memory(self, trouble: Trouble | None, rank: int) -> NoReturn:
        """Raise OutOfMemory in every process, with the reason in the one that met it."""
        message = f"in process {rank}"
        if rank == self.ranks.rank:
            message = str(trouble)
        raise OutOfMemory(message, told=True)

    def _raise_first_message(self, trouble: Trouble | None) -> NoReturn:
        """Raise the UserError of the first process that gave up, in every process."""
        gave_up = isinstance(trouble, UserError)
        messages = gather_objects(self.ranks, str(trouble) if gave_up else None)
        raise first_error(self.ranks, messages)


def severity(trouble: Trouble | None) -> int:
    """The number that is told for an error; of several, the largest counts."""
    if trouble is None:
        return FINE
    if isinstance(trouble, OutOfMemory):
        return NO_MEMORY
    if isinstance(trouble, UserError):
        return GIVES_UP
    return NOT_FINITE
