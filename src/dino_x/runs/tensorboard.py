"""The metrics of a run for TensorBoard; metrics.jsonl has the same numbers and is never lost."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NO_FLUSH_BY_ITSELF = 10**6  # seconds: each step flushes, so its errors are raised in `step`


class TensorBoardFile:
    """Writes scalars with PyTorch's ``SummaryWriter``, to a new file for each start of a run.

    An error of the disk ends the file with one message. It never stops the run.

    Args:
        folder: of all files of the run.
        done: finished steps; TensorBoard ignores what earlier files have of later steps.
        say: told once if the file cannot be written.
    """

    def __init__(self, folder: Path, done: int, say: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.folder = folder
        self.say = say
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(
                str(folder), purge_step=done + 1, flush_secs=NO_FLUSH_BY_ITSELF
            )
        except OSError as error:
            self._give_up(error.strerror)
        except UnicodeError:
            self._give_up("it takes no name that is not UTF-8")
        _print_no_traceback()

    def step(self, values: Mapping[str, Any]) -> None:
        """Write the metrics of the step ``values["step"]``."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                if name != "step":
                    self._writer.add_scalar(name, value, values["step"])
            self._writer.flush()
        except OSError as error:
            self._give_up(error.strerror)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _give_up(self, reason: str | None) -> None:
        self.close()
        self.say(
            f"TensorBoard's file in {self.folder} cannot be written ({reason}): it ends"
            " here; training continues, and metrics.jsonl has every step"
        )


def _print_no_traceback() -> None:
    """Keep the writer's thread from printing an error that ``step`` meets as well."""
    for thread in threading.enumerate():
        if type(thread).__name__ == "_AsyncWriterThread":
            thread._invoke_excepthook = lambda *arguments: None  # type: ignore[attr-defined]
