"""Steps with NaN or infinity: skip them, go back to a checkpoint once, or stop.

What is decided here is a pure function of what the run remembers, so all processes decide alike.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Decision(Enum):
    """What the loop does about a step with NaN or infinity."""

    SKIP = "skip"
    GO_BACK = "go back"
    STOP = "stop"


@dataclass
class Recovery:
    """What a run remembers of such steps; it is part of every checkpoint.

    Attributes:
        in_a_row: steps skipped since the last that counted.
        skipped: steps skipped in all.
        back_to: step of the last checkpoint that every run of these settings makes, to which the
            run would go back. A checkpoint made because a run was asked to stop is not one.
        lr_factor: factor of the schedule's learning rate; below 1 once the run has gone back to a
            checkpoint.
    """

    in_a_row: int = 0
    skipped: int = 0
    back_to: int | None = None
    lr_factor: float = 1.0

    @property
    def went_back(self) -> bool:
        """Whether the run has gone back already."""
        return self.lr_factor < 1

    def state_dict(self) -> dict[str, Any]:
        """The values, for a checkpoint."""
        return asdict(self)

    def decide(
        self, limit: int, *, last_and_none_counted: bool, can_go_back: Callable[[], bool]
    ) -> Decision:
        """What to do about one more step with NaN or infinity.

        Args:
            limit: so many in a row are no accident; 0 skips none.
            last_and_none_counted: whether it was the last step, and all before it were skipped.
            can_go_back: whether there is a checkpoint to go back to; asked only if that matters.
        """
        if self.in_a_row + 1 < limit and not last_and_none_counted:
            return Decision.SKIP
        possible = can_go_back()
        if not limit or self.went_back or not possible:
            return Decision.STOP
        return Decision.GO_BACK

    def skip(self) -> None:
        """Count a skipped step."""
        self.in_a_row += 1
        self.skipped += 1
