"""Checkpoints written in a thread, from a copy of the state, while training continues."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dino_x.config.options import CheckpointOptions
from dino_x.errors import UserError
from dino_x.losses.checks import NotFiniteError
from dino_x.runs.checkpoint import NOT_WRITTEN, checkpoints

NOT_SAVED = (*NOT_WRITTEN, NotFiniteError)


def way_out(error: Exception) -> str:
    """What to do where the last state of a run could not be saved."""
    if isinstance(error, NotFiniteError):
        return "try a lower optim.lr or optim.weight_decay in a new run"
    return "make room, and finish with --resume"


class FindingListener(Protocol):
    """What is told of a checkpoint that could not be written; see report.py."""

    def finding(self, text: str) -> None:
        """Show a paragraph to the user."""


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be written: of which step, and why."""

    step: int
    error: Exception


class Saver:
    """Writes one checkpoint at a time.

    Args:
        folder: where checkpoints are.
        write: takes the step and the state, and writes it.
        options: when, and whether in a thread, from a copy in the machine's memory.
    """

    def __init__(
        self,
        folder: Path,
        write: Callable[[int, dict[str, Any]], None],
        options: CheckpointOptions,
    ) -> None:
        self.folder = folder
        self.write = write
        self.options = options
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dino-x-save")
        self._running: tuple[int, Future[None]] | None = None

    @property
    def over(self) -> bool:
        """Whether a write has ended that ``finish`` was not asked about."""
        return self._running is not None and self._running[1].done()

    def begin(self, step: int, state: dict[str, Any]) -> None:
        """Start to write the state as it is now; the one before has to be finished.

        Where memory does not suffice for a copy it is written at once.
        """
        assert self._running is None
        written: Future[None] = Future()
        if self.options.background and (copy := _copied_if_it_fits(state)) is not None:
            written = self._pool.submit(self.write, step, copy)
        else:
            try:
                self.write(step, state)
                written.set_result(None)
            except NOT_SAVED as error:
                written.set_exception(error)
        self._running = step, written

    def finish(self, seconds: float | None = None) -> Failure | None:
        """Wait for the write in progress, if there is one; what became of it.

        Args:
            seconds: to wait at most. Raises: TimeoutError after them.
        """
        if self._running is None:
            return None
        step, written = self._running
        try:
            written.result(seconds)
        except NOT_SAVED as error:
            self._running = None
            return Failure(step, error)
        self._running = None
        return None

    def saved(self, report: FindingListener, last: bool = False) -> None:
        """Wait for the write in progress, if there is one, and tell if it failed.

        Raises: UserError for that, if it was the last: of others there is a next one.
        """
        failure = self.finish()
        if failure is None:
            return
        line = (
            f"nothing could be saved after step {failure.step}: {failure.error}; {self.last_good()}"
        )
        if last:
            raise UserError(f"{line}; {way_out(failure.error)}") from failure.error
        report.finding(
            f"{line}; training continues, and tries again after the next {self.options.every} steps"
        )

    def last_good(self) -> str:
        """A clause on what a run can go back to."""
        saved = checkpoints(self.folder)
        return f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was made yet"

    @contextmanager
    def open(self, report: FindingListener) -> Iterator[None]:
        """Whatever ends the block, what is being written is written first."""
        try:
            yield
        finally:
            try:
                self.saved(report)
            finally:
                self._pool.shutdown(wait=True)


def _copied_if_it_fits(state: dict[str, Any]) -> dict[str, Any] | None:
    """A copy in the machine's memory, or None if there is no room for it."""
    try:
        copy = copied(state)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # copies from the GPU run beside Python
        return copy
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for it on a CPU
        if isinstance(error, MemoryError) or "memory" in str(error):
            return None
        raise


def copied(value: Any) -> Any:
    """Nested dicts, lists and tuples, with every tensor copied to the machine's memory.

    >>> copied({"a": [torch.ones(2), 3]})
    {'a': [tensor([1., 1.]), 3]}
    """
    if isinstance(value, Tensor):
        value = value.detach()
        on_gpu = value.is_cuda
        there = torch.empty_like(value, device="cpu", pin_memory=on_gpu)
        return there.copy_(value, non_blocking=on_gpu)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value
