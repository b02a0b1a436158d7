"""A file with a JSON line a run: what is there is not run again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def once(key: dict[str, Any], out: Path, run: Callable[..., dict[str, Any]]) -> None:
    """Append a line of ``key`` and what ``run(**key)`` comes to, unless ``out`` holds it."""
    if any(all(line[name] == value for name, value in key.items()) for line in read(out)):
        return
    text = json.dumps(key | run(**key))
    with out.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)
