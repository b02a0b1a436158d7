"""Signals that ask a run to stop: it finishes its step, saves a checkpoint and ends.

SLURM and Kubernetes send SIGTERM before they take a machine away, SLURM with ``--signal`` SIGUSR1;
Ctrl-C is SIGINT, and a terminal that is closed SIGHUP, unless that is ignored (``nohup``).

The exit status is 128 and the signal's number, as a shell has it for a process that a signal ended:
the run is not finished, and programs that wait for it must not continue.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dino_x.machine.system import signals

SIGNALS = signals(("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"))
EARLY = 1000  # asks for the end as a signal does, and is none: the evaluation rose no more
HANG_UP = signals(("SIGHUP",))

# torchrun kills what does not end in 30 s. A process that waits for one that has died hears of it
# from its network at once, or never; after SIGTERM this long without progress means never.
STUCK_SECONDS = 20.0

# Of a Ctrl-C in a terminal its processes hear twice under torchrun, which passes it on.
SAME_SECONDS = 3.0


class Stop:
    """Listens for signals in one process.

    Attributes:
        asked: the number of the first signal that came, or 0; heard is when.
        says: whether this process says that it heard Ctrl-C.
        progress: changes while the process gets on.
        give_up: what to do before ending a process that is stuck after SIGTERM; None: it may
            take any time, as it waits for no other.
    """

    def __init__(
        self,
        *,
        says: bool = True,
        progress: Callable[[], int] = lambda: 0,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self.asked = 0
        self.heard = 0.0
        self.says = says
        self.progress = progress
        self.give_up = give_up

    @contextmanager
    def listen(self) -> Iterator["Stop"]:
        """A context that listens for signals, in a main thread; other threads cannot."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        ignored = [number for number in HANG_UP if signal.getsignal(number) == signal.SIG_IGN]
        heard = [number for number in SIGNALS if number not in ignored]
        before = {number: signal.signal(number, self._heard) for number in heard}
        try:
            with self._watched() if self.give_up is not None else contextlib.nullcontext():
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; a second Ctrl-C stops at once."""
        now = time.monotonic()
        is_ctrl_c = number == signal.SIGINT
        if not self.asked:
            if is_ctrl_c and self.says:
                say("stopping after this step; Ctrl-C again stops at once")
            self.asked, self.heard = number, now
            return
        another = self.give_up is None or now - self.heard > SAME_SECONDS
        if is_ctrl_c and another:
            signal.default_int_handler(number, frame)

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
        while signal.SIGTERM not in (numbers := hears.recv(64)):
            if not numbers:  # the end of the block
                return
        hears.settimeout(0.5)
        seen, since = self.progress(), time.monotonic()
        while time.monotonic() - since < STUCK_SECONDS:
            try:
                if not hears.recv(64):
                    return
            except TimeoutError:
                pass
            if self.progress() != seen:
                seen, since = self.progress(), time.monotonic()
        if self.give_up is not None:
            self.give_up()
            os._exit(128 + signal.SIGTERM)


def say(line: str) -> None:
    """Write a line to stderr, from wherever the process is."""
    with contextlib.suppress(OSError):
        file = sys.__stderr__.fileno() if sys.__stderr__ else 2
        os.write(file, f"dino-x: {line}\n".encode())
