"""Starting processes of Python's multiprocessing from any script or notebook."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_lock = threading.Lock()


@contextmanager
def without_main() -> Iterator[None]:
    """A context in which processes that are started do not run the caller's script again.

    multiprocessing makes every process that it spawns import the script, so that functions of the
    script can be called there. Ours call functions of this package alone. A script without
    ``if __name__ == "__main__"`` would start its work again in each of them.
    """
    with _lock:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script
