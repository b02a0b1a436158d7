"""A sample of the commands of benchmarks/hostile.py: none ends in a traceback, hangs or swells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it watches forks, as Linux has them")
def test_hostile_commands_end_with_one_line():
    script = ROOT / "benchmarks" / "hostile.py"
    found = subprocess.run(
        [sys.executable, script, "--commands", "45", "--seed", "7"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    assert "| files | 15 |" in found.stdout
