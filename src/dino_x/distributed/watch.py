"""Whether the other processes are still there, while this one waits for them.

A process that is killed closes its connections, and whoever waits for it is told at once. Not so
for one that waits for a third, such as rank 0 in a long evaluation, nor if a process or a
machine is frozen. So each counts up a number of its own at the launcher's store, a few seconds
apart, and ends the whole process when another's number stands still.
"""

import os
import threading
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

BEAT = 5.0  # seconds between two signs of life
MOST_MISSED = 9  # in a row: so after 45 to 50 seconds


class Watch:
    """Gives signs of life, and looks for those of the others, until it is stopped.

    Time is counted in beats of its own: a job that is suspended and resumed as a whole continues.

    Attributes:
        own, count: the rank of this process, and the number of processes.
        missed: beats since each process was last heard of; all of them if the store is gone.
    """

    def __init__(
        self, address: str, port: int, own: int, count: int, end: Callable[[str], None]
    ) -> None:
        """``end`` is called, in another thread, with what is to be said (by one process)."""
        self.own, self.count, self.end = own, count, end
        self.missed = [0] * count
        self._stopped = threading.Event()
        self._store = dist.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(minutes=1)
        )
        for work in (self._beat, self._look):
            threading.Thread(target=work, name=f"watch {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Stop both threads. The others may miss this process from now on."""
        self._stopped.set()

    def _beat(self) -> None:
        """Exchange beats until stopped; this may hang with the store's machine."""
        heard = [0] * self.count
        while not self._stopped.wait(BEAT):
            try:
                self._exchange_beats(heard)
            except RuntimeError:  # the process or machine that has the store is gone
                return

    def _exchange_beats(self, heard: list[int]) -> None:
        """Add one to the own number; the processes whose number moved are not missed."""
        for rank in range(self.count):
            number = self._store.add(f"beat/{rank}", int(rank == self.own))
            if number != heard[rank]:
                heard[rank], self.missed[rank] = number, 0

    def _look(self) -> None:
        """Count beats without a sign of life; end this process if another one is lost."""
        while not self._stopped.wait(BEAT):
            self.missed = [number + 1 for number in self.missed]
            lost = [rank for rank, number in enumerate(self.missed) if number > MOST_MISSED]
            if lost and not self._stopped.is_set():
                message = self._message(lost) if self._speaks(lost) else ""
                self.end(message)
                return

    def _speaks(self, lost: list[int]) -> bool:
        """Whether this process prints the message: the first that is left does.

        If the store is gone, all count as lost, and every process prints it.
        """
        there = [rank for rank in range(self.count) if rank not in lost]
        return self.own == min(there, default=self.own)

    def _message(self, lost: list[int]) -> str:
        """The message for the user about the processes that are lost."""
        others = ", ".join(str(rank) for rank in lost if rank != self.own)
        seconds = round(BEAT * MOST_MISSED)
        return (
            f"process {self.own}: no sign of life from process {others} for {seconds} s, its"
            " machine or the network may be gone; continue with --resume"
        )


def end_process(message: str) -> None:
    """End this process at once, with status 2, whatever its main thread waits for."""
    if message:  # not through sys.stderr, which a progress bar may hold
        os.write(2, f"\ndino-x: {message}\n".encode())
    os._exit(2)
