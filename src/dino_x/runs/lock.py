"""One run, one folder: who writes into a RUN says so in a file, and others stay out.

The file holds the machine, the process and the time, and is touched now and then while its owner
lives. It works where files cannot be locked, as on some network file systems, and an owner that was
killed leaves nothing that blocks: on its own machine it is found to be gone at once, from another
machine after two minutes without a touch.
"""

import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dino_x.errors import UserError
from dino_x.files import parse_json, read_text

NAME = "lock"
TOUCHED_EVERY = 20.0  # seconds
GONE_AFTER = 120.0


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        machine: its name.
        process: its number there.
        since: when it began, as text.
    """

    machine: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.machine}, since {self.since}"


class RunLock:
    """The right to write into a run's folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._held = False
        self._stop = threading.Event()

    def take(self) -> None:
        """Take the folder; it must exist. Taking it twice is once.

        Raises: UserError if another process has it; OSError if it cannot be written.
        """
        if self._held:
            return
        for _ in range(3):  # a lock that is found to be left over may be taken by another meanwhile
            try:
                descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._remove_left_over()
                continue
            self._held = True
            self._stop.clear()
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(json.dumps(_self()))
            except OSError:  # a full disk; a lock that says nothing would keep all out
                self.release()
                raise
            threading.Thread(target=self._touch, daemon=True).start()
            return
        raise self._refusal(self.holder())

    def release(self) -> None:
        """Give the folder free, if this process has it."""
        self._stop.set()
        if self._held:
            self._held = False
            with contextlib.suppress(OSError):
                self.file.unlink()

    def refuse_if_held(self) -> None:
        """Raise UserError if another process writes into the folder now."""
        holder = self.holder()
        if holder is not None and not self._held and not self._is_left_over():
            raise self._refusal(holder)

    def holder(self) -> Holder | None:
        """Who has the folder; None if nobody has, or that cannot be read."""
        said = self._said()
        if said is None:
            return None
        return Holder(str(said.get("machine")), int(said.get("process", 0)), str(said.get("since")))

    def _said(self) -> dict[str, Any] | None:
        try:
            said = parse_json(read_text(self.file))
            int(said.get("process", 0))
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return dict(said)

    def _is_left_over(self) -> bool:
        """Whether the owner is gone."""
        said = self._said()
        own = _self()
        if said is not None and said.get("place") == own["place"]:
            return not _is_alive(int(said.get("process", 0)), said.get("started"))
        try:
            return time.time() - self.file.stat().st_mtime > GONE_AFTER
        except OSError:
            return True

    def _remove_left_over(self) -> None:
        """Remove the lock of an owner that is gone. Raises UserError if it is not."""
        if not self._is_left_over():
            raise self._refusal(self.holder())
        with contextlib.suppress(OSError):
            self.file.unlink()

    def _refusal(self, holder: Holder | None) -> UserError:
        who = "another process" if holder is None else str(holder)
        return UserError(
            f"{self.file.parent} is in use by {who}: wait until it has ended, or choose another"
            " --out"
        )

    def _touch(self) -> None:
        while not self._stop.wait(TOUCHED_EVERY):
            with contextlib.suppress(OSError):
                os.utime(self.file)


def _self() -> dict[str, Any]:
    """What is written about this process."""
    return {
        "machine": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
        "started": _started(os.getpid()),
        "place": f"{socket.gethostname()} {_namespace()}",
    }


def _namespace() -> str:
    """What numbers of processes are counted in; empty where that is not known."""
    try:
        return (
            os.readlink("/proc/self/ns/pid")
            + " "
            + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        )
    except OSError:
        return ""


def _started(process: int) -> str | None:
    """When a process began, as the kernel counts; None where that is not known."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(process: int, started: object) -> bool:
    """Whether a process of this machine is still the one that began then."""
    if Path("/proc/self/stat").exists():
        return started is not None and _started(process) == started
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
