"""A sample of hostile commands and damaged files: none ends in a traceback, hangs or swells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="they watch forks, as Linux has them"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "row"),
    [
        ("hostile.py", ("--commands", "21", "--seed", "7"), "| files | 7 |"),
        ("fuzz_files.py", ("--files", "8", "--seed", "7"), "| checksum | 8 |"),
    ],
)
def test_each_ends_with_a_result_or_a_line(script, arguments, row):
    found = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr[-2000:]
    assert row in found.stdout
