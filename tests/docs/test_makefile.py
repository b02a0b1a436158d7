"""`make` says what to do about Python before it makes anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "There is no ./python here: install Python 3.11 or newer, or name yours"),
        (
            '[ "$1" = -V ] && { echo Python 3.9.2; exit 0; }; exit 1',
            "./python is Python 3.9.2, and Python 3.11 or newer is needed",
        ),
        ('case "$2" in *ensurepip*) exit 1;; esac', "install its package venv"),
    ],
)
def test_a_python_that_will_not_do_is_refused_before_anything_is_made(tmp_path, script, message):
    if shutil.which("make") is None:
        pytest.skip("there is no make here")
    shutil.copy(MAKEFILE, tmp_path)
    for name in ("pyproject.toml", "requirements-tested.txt"):
        (tmp_path / name).touch()
    if script is not None:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
    command = ["make", "PYTHON=./python", "demo"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 2
    assert message in " ".join(ran.stdout.split())
    assert not (tmp_path / ".venv").exists()
