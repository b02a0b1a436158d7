"""Where images are decoded: in this process, or in others that a crash of a decoder may end.

Decoders are native code. A crash in one, or a kill for its memory, ends its process: this one and
with it the run, or another one, which is then started again. Each thread has a decoding process of
its own, so that it is known which image the process died of.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from dino_x.data.image import Unreadable
from dino_x.errors import UserError
from dino_x.machine.child_processes import without_main
from dino_x.machine.system import signals

T = TypeVar("T")

TRIES = 2  # the first death may be an accident: another process took the memory
STARTS = 3
DIED = "decoding it ends the process that does, each time"


class Decoding:
    """Decodes images in the thread that asks for them."""

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call a function that decodes an image and return its result.

        Raises: what the function raises; Unreadable if no process survives it.
        """
        return work(*arguments)

    def close(self) -> None:
        """End the processes that were started, if there are any."""

    def __enter__(self) -> Decoding:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcesses(Decoding):
    """Decodes images in a process for each thread; function, arguments and result are pickled."""

    def __init__(self) -> None:
        # Processes are forked from a server that has imported what they need, so they start fast.
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["dino_x.data.loading.loader"])
        self._own = threading.local()
        self._started: list[ProcessPoolExecutor] = []

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call a function in this thread's process, see `Decoding.run`.

        Raises: UserError if no process can be started.
        """
        for _ in range(TRIES):
            try:
                return self._process().submit(work, *arguments).result()
            except BrokenProcessPool:
                self._own.process = None
        raise Unreadable(DIED)

    def close(self) -> None:
        """End the processes once they have finished the images that they are decoding."""
        for process in self._started:
            process.shutdown(wait=True, cancel_futures=True)

    def _process(self) -> ProcessPoolExecutor:
        """The process of this thread, started if there is none."""
        if getattr(self._own, "process", None) is None:
            self._own.process = self._new_process()
        process: ProcessPoolExecutor = self._own.process
        return process

    def _new_process(self) -> ProcessPoolExecutor:
        for _ in range(STARTS):
            process = ProcessPoolExecutor(1, self._context, _start)
            self._started.append(process)
            try:
                with without_main():
                    started = process.submit(os.getpid)
                started.result()  # so that no image is blamed for a failed start
            except BrokenProcessPool:
                continue
            return process
        raise UserError(
            "processes that decode images cannot be started; is there memory left?"
            " data.decode_in=threads needs none"
        )


def decoding_in(where: str) -> Decoding:
    """The decoding that ``data.decode_in`` names: "threads" or "processes"."""
    return InProcesses() if where == "processes" else Decoding()


def _start() -> None:
    """Ignore signals, which are for the process that started this one, and end with it."""
    for number in signals(("SIGINT", "SIGTERM", "SIGUSR1")):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
