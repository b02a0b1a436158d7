"""Signals that ask a run to stop: it finishes its step, saves a checkpoint and ends.

SLURM and Kubernetes send SIGTERM before they take a machine away, SLURM with ``--signal`` SIGUSR1,
and Ctrl-C is SIGINT. The exit status is 128 and the signal's number, as a shell has it for a
process that a signal ended: the run is not finished, and what waits for it must not go on.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# torchrun kills what does not end in 30 s. A process that waits for one that has died hears of it
# from its network at once, or never; after SIGTERM this long without progress means never.
STUCK_SECONDS = 20.0


class Stop:
    """Listens for signals in one process.

    Attributes:
        asked: the number of the first signal that came, or 0.
        says: whether this process says that it heard Ctrl-C.
        progress: changes while the process gets on.
        give_up: what to do before ending a process that is stuck after SIGTERM; None: it cannot
            get stuck, as it waits for no other.
    """

    def __init__(
        self,
        *,
        says: bool = True,
        progress: Callable[[], int] = lambda: 0,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self.asked = 0
        self.says = says
        self.progress = progress
        self.give_up = give_up
        self.listening = False

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take the signals, until the block ends. Only a main thread can; others take none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        self.listening = True
        try:
            with self._watched() if self.give_up is not None else contextlib.nullcontext():
                yield
        finally:
            self.listening = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.asked:
                signal.default_int_handler(number, frame)
            if self.says:
                say("stopping after this step; Ctrl-C again stops at once")
        self.asked = self.asked or number

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A thread hears of signals too: the main thread may be stuck where Python cannot run."""
        hears, told = socket.socketpair()
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(hears,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            told.close()
            watch.join()
            hears.close()

    def _watch(self, hears: socket.socket) -> None:
        seen = -1
        while True:
            try:
                numbers: Any = hears.recv(64)
            except TimeoutError:
                if self.progress() == seen:
                    break
            else:
                if not numbers:  # the end of the block
                    return
                if signal.SIGTERM not in numbers:
                    continue
            hears.settimeout(STUCK_SECONDS)
            seen = self.progress()
        assert self.give_up is not None
        self.give_up()
        os._exit(128 + signal.SIGTERM)


def say(line: str) -> None:
    """To stderr, from wherever the process is."""
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"dino-x: {line}\n".encode())
