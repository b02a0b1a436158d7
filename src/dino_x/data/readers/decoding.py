"""Where images are decoded: in this process, or in others that a crash of a decoder may end.

Decoders are native code. What crashes there, or is killed for its memory, takes its process along:
this one and with it the run, or one that can be started anew. Each thread that asks has a process
of its own, so that it is known which image one died of.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any, TypeVar

from dino_x.data.image import Unreadable
from dino_x.errors import UserError

T = TypeVar("T")

TRIES = 2  # the first death may be an accident: another process took the memory
STARTS = 3
DIED = "decoding it ends the process that does, each time"


class Decoding:
    """In the thread that asks."""

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What a function returns that decodes an image.

        Raises: what it raises; Unreadable if no process survives it.
        """
        return work(*arguments)

    def close(self) -> None:
        """End what was started."""

    def __enter__(self) -> Decoding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class InProcesses(Decoding):
    """In a process for each thread that asks; function, arguments and result are sent."""

    def __init__(self) -> None:
        # Forked from a server that has imported what they need: a new one takes no second.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["dino_x.data.loading.loader"])
        self._own = threading.local()
        self._started: list[ProcessPoolExecutor] = []

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """See `Decoding.run`.

        Raises: UserError if no process can be started.
        """
        for _ in range(TRIES):
            try:
                return self._process().submit(work, *arguments).result()
            except BrokenProcessPool:
                self._own.process = None
        raise Unreadable(DIED)

    def close(self) -> None:
        """End the processes; what they are decoding is finished first."""
        for process in self._started:
            process.shutdown(wait=True, cancel_futures=True)

    def _process(self) -> ProcessPoolExecutor:
        """The process of this thread."""
        process: ProcessPoolExecutor | None = getattr(self._own, "process", None)
        for _ in range(0 if process else STARTS):
            process = ProcessPoolExecutor(1, self._context, _start)
            self._started.append(process)
            try:
                process.submit(os.getpid).result()  # so that no image is blamed for this
            except BrokenProcessPool:
                process = None
                continue
            break
        if process is None:
            raise UserError(
                "processes that decode images cannot be started; is there memory left?"
                " data.decode_in=threads needs none"
            )
        self._own.process = process
        return process


def decoding_in(where: str) -> Decoding:
    """For ``data.decode_in``: threads or processes."""
    return InProcesses() if where == "processes" else Decoding()


def _start() -> None:
    """Leave signals to the process that has started this one, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
