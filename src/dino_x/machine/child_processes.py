"""Starting processes of Python's multiprocessing from any script or notebook."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

OF_THE_SCRIPT = ("init_main_from_name", "init_main_from_path")

_lock = threading.Lock()


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that this thread starts in here do not run the caller's script again.

    multiprocessing tells every process that it spawns to import the script, so that functions of
    the script can be called there. Ours call functions of this package alone. A script without
    ``if __name__ == "__main__"`` would start its work again in each of them. Processes that other
    threads start meanwhile are told as always.
    """
    thread = threading.get_ident()

    def preparation(name: str) -> dict[str, Any]:
        data = told(name)
        if threading.get_ident() == thread:
            data = {key: value for key, value in data.items() if key not in OF_THE_SCRIPT}
        return data

    with _lock:
        told = spawn.get_preparation_data
        spawn.get_preparation_data = preparation
        try:
            yield
        finally:
            spawn.get_preparation_data = told
