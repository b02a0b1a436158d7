"""A process that reads files under watch.

The decoders are C code, which may crash or hang: so that either is caught and named, files are
read in a process of their own, with a limit on time and a look at its memory.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 5.0
BYTES = 2**30
_PATIENCE = 60.0  # of the wall's clock


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        said: "image", "unreadable: <reason>", "crash", "hang", or "error: <exception>".
        seconds: of the processor's time that it took: a busy machine has no say in it.
        growth: of the process's memory at its highest, in bytes.
    """

    kind: str
    seconds: float
    growth: int

    @property
    def is_good(self) -> bool:
        known = self.kind == "image" or self.kind.startswith("unreadable: ")
        return known and self.seconds <= SECONDS and self.growth <= BYTES


class Watched:
    """A process that reads files; it is started anew after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> Outcome:
        """Read a file: all that its header names, the first and the last image decoded."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        begin = time.monotonic()
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        except BrokenPipeError:  # it had died before it was asked
            self.close()
            return Outcome("crash", time.monotonic() - begin, 0)
        ready, _, _ = select.select([process.stdout], [], [], _PATIENCE)
        line = process.stdout.readline() if ready else None
        if not line:
            self.close()
            return Outcome("hang" if line is None else "crash", time.monotonic() - begin, 0)
        return Outcome(**json.loads(line))

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # what it was never told
                        stream.close()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            root = Path(__file__).parents[2]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.data.watched"], cwd=root, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            assert self._process.stdout is not None
            assert self._process.stdout.readline() == "ready\n"
        return self._process


def read_files_named_on_stdin() -> None:
    """The other side of `Watched`."""
    from dino_x.data.readers.registry import Unreadable, read, refs

    # What a decoder prints must not be taken for an answer.
    answers = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        before = _peak(reset=True)
        begin = time.process_time()
        try:
            found = refs(Path(line[:-1]))
            for ref in {found[0].frame: found[0], found[-1].frame: found[-1]}.values():
                read(ref)
            kind = "image"
        except Unreadable as reason:
            kind = f"unreadable: {reason}"
        except BaseException as error:
            kind = f"error: {type(error).__name__}: {error}"
        seconds = time.process_time() - begin
        growth = _peak() - before
        print(json.dumps({"kind": kind, "seconds": seconds, "growth": growth}), file=answers)


def _peak(*, reset: bool = False) -> int:
    """The highest memory of this process since it was reset, in bytes (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    read_files_named_on_stdin()
