"""Where an operating system lacks something, DINO-X is imported and trains all the same."""

import subprocess
import sys
import textwrap

import pytest
import torch

from dino_x.errors import UserError
from dino_x.machine.device import choose_device
from dino_x.machine.system import lock_alone, lock_shared, signals

WINDOWS = """
    import builtins, os, signal, sys
    import torch, torch._dynamo, transformers, pyarrow
    real_import = builtins.__import__
    def as_on_windows(name, globals=None, *others, **named):
        ours = str((globals or {}).get("__name__", "")).startswith("dino_x")
        if ours and name in ("fcntl", "resource"):
            raise ImportError(f"no module named {name}, as on Windows")
        return real_import(name, globals, *others, **named)
    builtins.__import__ = as_on_windows
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
        delattr(signal, name)
    del os.pread
"""


def in_a_system_without(code):
    """Run code where Windows' gaps are; torch itself is imported before they are made."""
    script = textwrap.dedent(WINDOWS)
    script += textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.slow
def test_every_module_can_be_imported_without_what_linux_has():
    done = in_a_system_without("""
        import importlib, pkgutil, dino_x
        for module in pkgutil.walk_packages(dino_x.__path__, "dino_x."):
            importlib.import_module(module.name)
        print("all imported")
    """)
    assert "all imported" in done.stdout, done.stderr[-2000:]


@pytest.mark.slow
def test_a_run_trains_without_what_linux_has(films, tmp_path):
    out = tmp_path / "run"
    done = in_a_system_without(f"""
        from tests.training.runs import pretrain
        status = pretrain({str(films)!r}, {str(out)!r}, "--effective-batch", 8, "--micro-batch", 8,
                          "--steps", 2, "--cache", {str(tmp_path / "cache")!r})
        print("status", status)
    """)
    assert "status 0" in done.stdout, done.stderr[-2000:]
    assert (out / "model" / "model.safetensors").is_file()


def test_signals_that_a_system_lacks_are_left_out():
    assert len(signals(("SIGINT", "SIGNOTHING"))) == 1


def test_a_lock_is_held_by_one(tmp_path):
    file = tmp_path / "lock"
    with file.open("w") as first, file.open("w") as second:
        assert lock_alone(first.fileno())
        assert not lock_alone(second.fileno())
        lock_shared(first.fileno())
        lock_shared(second.fileno())
        assert not lock_alone(second.fileno())


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="an Apple computer")
def test_mps_is_refused_where_pytorch_has_none():
    with pytest.raises(UserError, match="Apple"):
        choose_device("mps")
