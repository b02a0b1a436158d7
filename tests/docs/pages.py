"""Code on the pages of docs/, to be run as it stands there."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def python_blocks(name: str) -> list[str]:
    """The Python blocks of a page, in order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_page(name: str) -> dict[str, Any]:
    """Run a page from top to bottom; the names that it defines."""
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in python_blocks(name):
        exec(compile(block, name, "exec"), names)
    return names
