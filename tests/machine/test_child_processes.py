"""Processes that are started from a script do not run it again, and nobody else notices."""

import sys
import threading
from multiprocessing import spawn

from dino_x.machine.child_processes import OF_THE_SCRIPT, without_main


def test_only_this_thread_leaves_the_script_out(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "/script.py", raising=False)
    script, before = sys.modules["__main__"], spawn.get_preparation_data
    found = {}

    def other():
        found["other"] = set(spawn.get_preparation_data("other"))
        found["main"] = sys.modules["__main__"]

    with without_main():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        found["own"] = set(spawn.get_preparation_data("own"))
    assert not found["own"] & set(OF_THE_SCRIPT)
    assert found["other"] & set(OF_THE_SCRIPT)
    assert found["main"] is script
    assert spawn.get_preparation_data is before
