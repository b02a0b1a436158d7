"""What tests share: images made on the spot, a run small enough for a test, and the devices."""

import os
import shutil
import subprocess

import pytest
import torch

from tests.tiny import TINY, draw_film, make_films, tiny_settings

__all__ = ["TINY", "draw_film", "make_films", "tiny_settings"]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Each device on which a test runs; that of a GPU is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU that PyTorch can use")
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def config_home(tmp_path_factory):
    """Settings of the user who runs the tests stay as they are."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    yield
    if before is None:
        del os.environ["XDG_CONFIG_HOME"]
    else:
        os.environ["XDG_CONFIG_HOME"] = before


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder of 40 small films."""
    return make_films(tmp_path_factory.mktemp("films"))


@pytest.fixture
def small_disk():
    """Mounts a file system of so many KB on a folder, or skips the test."""
    mounted = []

    def mount(folder, kilobytes):
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # it may be mapped still
