"""What the processes of a run tell each other in every step, so that none goes on without others.

Between two exchanges a process computes by itself. At the next one all learn whether one of them
met something it cannot go on with, or was asked to stop, and all draw the same conclusion.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dino_x.errors import SaidElsewhereError, UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.losses.ranks import ALONE, Ranks
from dino_x.training.world import from_all

FINE, NOT_FINITE, GIVES_UP = 0, 1, 2


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
    kept: UserError | None = None

    @contextmanager
    def part(self) -> Iterator[None]:
        """Work that every process does, with an exchange at its end.

        Raises: in every process what one of them raised: NotFiniteError, or the UserError of the
            first that gave up, which the first process says.
        """
        trouble: NotFiniteError | UserError | None = None
        try:
            yield
        except (NotFiniteError, UserError) as error:
            trouble = error
        self.exchange(trouble)

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """Work that only this process does: what it cannot go on with is told at the next exchange.

        Raises: UserError at once if there are no others.
        """
        try:
            yield
        except UserError as error:
            if self.ranks.count == 1:
                raise
            self.kept = self.kept or error

    def exchange(self, trouble: NotFiniteError | UserError | None = None) -> None:
        """Tell the others of some trouble, or of none; see ``part``."""
        trouble = self.kept or trouble
        gives_up = isinstance(trouble, UserError)
        own = GIVES_UP if gives_up else FINE if trouble is None else NOT_FINITE
        told = self.ranks.numbers([own, self.asked()], self.device)
        self.exchanges += 1
        self.stop = self.stop or max(signal for _, signal in told)
        worst = max(state for state, _ in told)
        if worst == FINE:
            return
        if self.ranks.count == 1:
            assert trouble is not None
            raise trouble
        if worst == NOT_FINITE:
            raise trouble or NotFiniteError("not finite in another process")
        messages = from_all(self.ranks, str(trouble) if gives_up else None)
        rank, message = next((n, text) for n, text in enumerate(messages) if text is not None)
        kind = UserError if self.ranks.own == 0 else SaidElsewhereError
        raise kind(message if rank == 0 else f"process {rank}: {message}")
