"""The benchmarks, whose figures stand in README and docs, can still be started."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))

IMPORT_ALL = """
import importlib, sys, traceback
sys.path[:0] = [{folder!r}, {root!r}]
failed = 0
for name in {names!r}:
    try:
        importlib.import_module(name)
    except Exception:
        failed += 1
        print(name, traceback.format_exc(limit=-1))
sys.exit(failed > 0)
"""


@pytest.mark.slow
def test_every_benchmark_can_be_imported():
    code = IMPORT_ALL.format(folder=str(FOLDER), root=str(FOLDER.parent), names=NAMES)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert len(NAMES) > 15
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_how_it_is_run(name):
    text = (FOLDER / f"{name}.py").read_text()
    runs = f"python benchmarks/{name}.py" in text or "python -m benchmarks" in text
    assert runs or "__main__" not in text
