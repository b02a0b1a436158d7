"""What a run was started with: versions, command, machine. Kept in RUN/environment.json.

The command holds paths, so the file stays in RUN; `in_a_line` is what a page or a card may show.
"""

import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dino_x.errors import UserError
from dino_x.files import read_json, write_json
from dino_x.version import __version__

PACKAGES = (
    "torch", "transformers", "numpy", "pydicom", "python-gdcm", "pylibjpeg", "nibabel", "pillow",
    "tifffile", "pyarrow", "scikit-learn", "safetensors",
)  # fmt: skip
GIT_SECONDS = 5


def describe(device: str, processes: int) -> dict[str, Any]:
    """What there is to say of a start of a run, which is now.

    Args:
        device: as it is said to the user.
        processes: that share the run.
    """
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "dino_x": __version__,
        "git_commit": commit(Path(__file__).parent),
        "packages": {name: installed for name in PACKAGES if (installed := version_of(name))},
        "cuda": torch.version.cuda,
        "device": device,
        "processes": processes,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def command(arguments: list[str]) -> str:
    """The command line as one would type it."""
    name = Path(arguments[0]).name if arguments and arguments[0] else "python"
    return shlex.join(["dino-x" if name == "cli.py" else name, *arguments[1:]])


def version_of(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(folder: Path) -> str | None:
    """The commit of the code in a folder, with ``+changes`` if files differ from it.

    Returns: None where the code is no checkout of git, or there is no git.
    """
    found = git(folder, "rev-parse", "--short=12", "HEAD")
    tracked = git(folder, "ls-files", "--error-unmatch", "environment.py")
    if not found or not tracked:  # a package installed somewhere below another repository
        return None
    return found + ("+changes" if git(folder, "status", "--porcelain", "-uno", ".") else "")


def git(folder: Path, *arguments: str) -> str | None:
    """What git says; None if it fails or is not there."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True,
            timeout=GIT_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def add_start(file: Path, start: Mapping[str, Any]) -> None:
    """Add a start to those that the file has. Raises: OSError."""
    write_json(file, {"starts": [*starts(file), start]})


def starts(file: Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first; none if that cannot be read."""
    try:
        found = read_json(file).get("starts") if file.is_file() else []
    except (UserError, AttributeError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def in_a_line(file: Path) -> str:
    """The last start without host and paths; empty if it is not known."""
    found = starts(file)
    if not found:
        return ""
    last = found[-1]
    at = f" ({last['git_commit']})" if last.get("git_commit") else ""
    torch_version = (last.get("packages") or {}).get("torch", "unknown")
    times = f", the last of {len(found)} starts" if len(found) > 1 else ""
    return (
        f"dino-x {last.get('dino_x')}{at}, Python {last.get('python')}, PyTorch {torch_version},"
        f" {last.get('device')}, {str(last.get('started'))[:10]}{times}"
    )
