"""Parts of gpu.py as child processes, each with its own limit of time."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_parts.results import append, read

ROOT = Path(__file__).parents[2]
LAST_WORDS = 300  # characters of what a child said before it failed


def environment() -> dict[str, str]:
    """What a child sees: this checkout comes first, whatever is installed."""
    paths = [str(ROOT / "src"), str(ROOT), str(ROOT / "benchmarks")]
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def run_part(name: str, command: list[str], out: Path, seconds: float) -> None:
    """Run a part to its end or to its limit; how it ended is a line if it did not end well.

    Args:
        name: of the part.
        command: the child; it adds lines to ``out`` itself.
        out: the file of lines.
        seconds: after which it is ended, with all that it started.
    """
    before = len(read(out))
    with tempfile.TemporaryFile("w+") as words:
        child = subprocess.Popen(
            command, stdout=words, stderr=subprocess.STDOUT, env=environment(),
            start_new_session=True,
        )  # fmt: skip
        in_time = True
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            in_time = False
            end = f"ended at its limit of {seconds:.0f} s; what it found before is kept"
            append(out, {"part": name, "what": "all else", "skipped": end})
        finally:
            end_group(child)
        if in_time and (child.returncode or len(read(out)) == before):
            words.seek(0)
            said = [line for line in words.read()[-LAST_WORDS * 10 :].splitlines() if line.strip()]
            last = said[-1][:LAST_WORDS] if said else "it said nothing"
            found = f"failed with status {child.returncode}: {last}"
            line = {"part": name, "what": "the part", "found": found, "wanted": "", "values": {}}
            append(out, line | {"holds": False})


def end_group(child: subprocess.Popen) -> None:
    """End a child and all that it started, if they have not ended."""
    if child.poll() is None or group_lives(child.pid):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            if gone(child, 2.0):
                break
    child.wait()


def group_lives(pid: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def gone(child: subprocess.Popen, seconds: float) -> bool:
    """Whether a child and its group end within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        child.poll()
        if not group_lives(child.pid):
            return True
        time.sleep(0.05)
    return False


def part_command(name: str, out: Path, seconds: float, more: list[str]) -> list[str]:
    """The command of a part."""
    script = str(ROOT / "benchmarks" / "gpu.py")
    return [sys.executable, script, "--part", name, "--out", str(out), "--seconds",
            f"{seconds:.1f}", *more]  # fmt: skip
