"""How long until the others end, when a process of a run is killed or frozen? Six ways.

    python -m benchmarks.lost_process

CPU processes on this machine. "while the first evaluates" is an evaluation that would take ten
minutes: the others wait for the first, and nobody for the one that is lost. Seconds are from the
loss until no process of the run is left.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from tests.conftest import make_films
from tests.equivalence.test_processes import CASES, arguments, started

LIMIT = 120  # seconds
BUSY = {"after step": 1, "first is busy": True}
# What is lost, of how many: in a step, or while the first evaluates.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "killed, the second of 4": (4, {"spoil": "killed", "in": 1}),
    "killed, the first of 4": (4, {"spoil": "killed", "in": 0}),
    "killed, the second of 2, while the first evaluates": (2, {"spoil": "killed", "in": 1} | BUSY),
    "killed, the second of 4, while the first evaluates": (4, {"spoil": "killed", "in": 1} | BUSY),
    "frozen, the second of 4": (4, {"spoil": "frozen", "in": 1}),
    "frozen, the first of 2": (2, {"spoil": "frozen", "in": 0}),
}


def lost(pid: int) -> bool:
    """Whether a process of this machine (Linux) has ended or is frozen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZX"
    except OSError:
        return True


def seconds(count: int, case: dict[str, Any], films: Path, folder: Path) -> float:
    """From the loss of a process until all others have ended."""
    job = {"arguments": arguments(films, folder / "run", 2, **CASES["queue"]), **case}
    with started(count, [job], folder / "results") as processes:
        while not lost(processes[case["in"]].pid):
            time.sleep(0.02)
        start = time.monotonic()
        others = [p for number, p in enumerate(processes) if number != case["in"]]
        while any(p.poll() is None for p in others):
            if time.monotonic() - start > LIMIT:
                return float("inf")
            time.sleep(0.02)
        return time.monotonic() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        films = make_films(Path(place) / "films")
        for name, (count, case) in WAYS.items():
            folder = Path(place) / name
            folder.mkdir()
            print(f"{name:<52}{seconds(count, case, films, folder):4.0f} s", flush=True)


if __name__ == "__main__":
    main()
