"""Files that grow record by record and that a full disk does not break: each record is whole."""

import contextlib
import errno
import json
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WAITING = 10_000  # records kept until there is room; 1 or 2 KB each


class GrowingFile:
    """Appends records to a file. Never raises for what the disk does.

    Records that cannot be written are kept, and written before the next one that can be.

    Args:
        path: made with the first record, with the folder it is in.
        say: told each time that records have to wait.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.path = path
        self.say = say
        self.waiting: deque[bytes] = deque(maxlen=WAITING)
        self._file: int | None = None

    def append(self, record: bytes) -> None:
        """Write a record, and what was waiting before it."""
        self.waiting.append(record)
        self.flush()

    def flush(self) -> None:
        """Write what is waiting, as far as there is room."""
        try:
            while self.waiting:
                self._append(self.waiting[0])
                self.waiting.popleft()
        except OSError as error:
            self.close()
            self.say(
                f"{self.path} cannot be written ({os.strerror(error.errno or 0)}): training"
                " continues, and the missing lines are added as soon as there is room"
            )

    def close(self) -> None:
        """Let go of the file; the next record opens what is at its path then."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _append(self, record: bytes) -> None:
        """All of a record or nothing. Raises OSError."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        whole, written = os.fstat(self._file).st_size, 0
        try:
            written = os.write(self._file, record)
        finally:
            if written < len(record):
                os.ftruncate(self._file, whole)
        if written < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def json_line(values: Mapping[str, Any]) -> bytes:
    """An object as a line of valid JSON: what is not finite becomes null.

    >>> json_line({"loss": float("nan"), "step": 3}).decode().strip()
    '{"loss": null, "step": 3}'
    """
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return (json.dumps(finite, allow_nan=False) + "\n").encode()
