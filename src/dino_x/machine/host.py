"""How much memory this process may still take: of the machine, its container and its limits."""

from pathlib import Path

import torch

from dino_x.machine.system import address_space_limit, page_bytes

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2_FILES = ("memory.max", "memory.current")
ADDRESS_SPACE, RESIDENT = 0, 1  # positions in /proc/self/statm
NO_LIMIT = 2**60  # of cgroup v1, which says "none" by a number of this order


def free_bytes(device: torch.device) -> float:
    """Bytes that a process may still take on its device; infinity where that is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return min(of_machine(), of_containers(), of_address_space())


def limit_bytes(device: torch.device) -> float:
    """Bytes of memory in all: the same in every start, unlike the free bytes."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    totals = [limit for limit, _ in _containers(PROC, GROUPS)]
    return min([_meminfo(PROC, "MemTotal"), *totals])


def of_machine(proc: Path = PROC) -> float:
    """Bytes that the kernel says are available without swapping."""
    return _meminfo(proc, "MemAvailable")


def of_containers(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Bytes left in every control group that this process is in, of cgroup v2 or v1.

    Pages of files that the kernel can drop count as used there, and as free here.
    """
    left = [limit - used for limit, used in _containers(proc, groups)]
    return min(left, default=float("inf"))


def of_address_space(proc: Path = PROC) -> float:
    """Bytes left of ``ulimit -v``."""
    return address_space_limit() - _statm(proc, ADDRESS_SPACE)


def resident_bytes(proc: Path = PROC) -> float:
    """Bytes that this process holds in memory now; 0 where that is not known."""
    return _statm(proc, RESIDENT)


def _statm(proc: Path, position: int) -> float:
    """A number of /proc/self/statm in bytes; 0 where there is none."""
    try:
        pages = int((proc / "self" / "statm").read_text().split()[position])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * page_bytes())


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
            found += _limits_below(groups, path, V2_FILES)
        elif "memory" in controllers.split(","):
            found += _limits_below(groups / "memory", path, V1_FILES)
    return found


def _limits_below(root: Path, path: str, names: tuple[str, str]) -> list[tuple[float, float]]:
    """Limit and use of the group at a path below a root, and of those above it.

    Args:
        root: the folder of all groups.
        path: the path of this process's group. A container may see its own group as the root, under
            the path that the host gave it.
        names: the files with the limit and the use.
    """
    own = root / path.lstrip("/")
    above = [folder for folder in own.parents if folder.is_relative_to(root)]
    found = []
    for folder in {root, own, *above}:
        limit, used = _number(folder / names[0]), _number(folder / names[1])
        if limit is None or limit >= NO_LIMIT:
            continue
        held = (used or 0.0) - _droppable(folder)
        found.append((limit, max(0.0, held)))
    return found


def _droppable(folder: Path) -> float:
    """Bytes of a group's pages of files that were not used lately; the kernel can drop them."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    found = values.get("total_inactive_file", values.get("inactive_file", "0"))
    if not found.strip().isdigit():
        return 0.0
    return float(found)


def _number(path: Path) -> float | None:
    """The number in a file; None if there is none, as where there is no limit."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _meminfo(proc: Path, name: str) -> float:
    """A number of /proc/meminfo in bytes; infinity where there is none."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found = [line for line in lines if line.startswith(f"{name}:")]
        return 1024.0 * int(found[0].split()[1])
    except (OSError, ValueError, IndexError):
        return float("inf")
