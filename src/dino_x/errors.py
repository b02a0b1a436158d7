"""The one kind of error that is meant for the person at the keyboard."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: shown as one line on stderr, exit status 2, no traceback.

    The message says what is wrong, with the offending value, and the way out.
    """


class SaidElsewhereError(UserError):
    """The same for a process of several whose first one says it."""


class StoppedError(UserError):
    """A run that was asked to stop, and has saved where it is.

    Attributes:
        status: the exit status, 128 and the number of the signal.
        says: whether this process says it.
    """

    def __init__(self, message: str, signal: int, says: bool = True) -> None:
        super().__init__(message)
        self.status = 128 + signal
        self.says = says


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'sinkhorn'?"`` for a near miss, or the empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""
