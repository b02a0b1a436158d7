"""How much memory this process may still take: of the machine, its container and its limits."""

import resource
from pathlib import Path

import torch

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2_FILES = ("memory.max", "memory.current")
NO_LIMIT = 2**60  # of cgroup v1, which says "none" by a number of this order


def free_bytes(device: torch.device) -> float:
    """Bytes that a process may still take on its device; infinity where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(of_machine(), of_containers(), of_address_space())


def limit_bytes(device: torch.device) -> float:
    """Bytes that there are in all: the same from start to start, unlike what is free."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    totals = [limit for limit, _ in _containers(PROC, GROUPS)]
    return min([_meminfo(PROC, "MemTotal"), *totals])


def of_machine(proc: Path = PROC) -> float:
    """What the kernel says is available without swapping."""
    return _meminfo(proc, "MemAvailable")


def of_containers(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """What is left in every control group that this process is in, of cgroup v2 or v1.

    Pages of files that the kernel can drop count as used there, and as free here.
    """
    return min([limit - used for limit, used in _containers(proc, groups)], default=float("inf"))


def of_address_space(proc: Path = PROC) -> float:
    """What is left of ``ulimit -v``."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    try:
        pages = int((proc / "self" / "statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        pages = 0
    return float(limit - pages * resource.getpagesize())


def resident_bytes(proc: Path = PROC) -> float:
    """What this process holds now; 0 where that is not known."""
    try:
        pages = int((proc / "self" / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * resource.getpagesize())


def _containers(proc: Path, groups: Path) -> list[tuple[float, float]]:
    """Limit and use of each control group above this process that has a limit."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = groups, V2_FILES
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", V1_FILES
        else:
            continue
        # A container may see its own group as the root, under the path that the host gave it.
        own = root / path.lstrip("/")
        for folder in {root, own, *(p for p in own.parents if p.is_relative_to(root))}:
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and limit < NO_LIMIT:
                found.append((limit, max(0.0, (used or 0.0) - _droppable(folder))))
    return found


def _droppable(folder: Path) -> float:
    """Pages of files that were not used lately."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    found = values.get("total_inactive_file", values.get("inactive_file", "0"))
    return float(found) if found.strip().isdigit() else 0.0


def _number(path: Path) -> float | None:
    """The number in a file; None if there is none, as where there is no limit."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _meminfo(proc: Path, name: str) -> float:
    """A line of /proc/meminfo in bytes; infinity where there is none."""
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024.0 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return float("inf")
