"""Free memory, with limits of containers that are made of files."""

import resource
import subprocess
import sys

import pytest
import torch

from dino_x.machine import host


@pytest.fixture
def machine(tmp_path):
    """Folders that stand for /proc and /sys/fs/cgroup."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text("MemTotal: 2048 kB\nMemAvailable:    1000 kB\n")
    return proc, groups


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_what_is_free_on_the_machine(machine):
    assert host.of_machine(machine[0]) == 1000 * 1024
    assert host.of_machine(machine[0] / "nowhere") == float("inf")


def test_a_limit_of_cgroup_v2_with_files_that_can_be_dropped(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("0::/user/job\n")
    stat = "anon 300\ninactive_file 100\nactive_file 50\n"
    group(groups / "user", memory__max="1000\n", memory__current="500\n", memory__stat=stat)
    group(groups / "user" / "job", memory__max="max\n", memory__current="300\n")
    assert host.of_containers(proc, groups) == 1000 - (500 - 100)
    group(groups / "user" / "job", memory__max="350\n")
    assert host.of_containers(proc, groups) == 50


def test_a_limit_of_cgroup_v1_and_a_container_that_sees_itself_as_the_root(machine):
    proc, groups = machine
    (proc / "self" / "cgroup").write_text("5:cpuacct,cpu:/x\n4:memory:/docker/abc\n0::/\n")
    group(
        groups / "memory", memory__limit_in_bytes="4000", memory__usage_in_bytes="1500",
        memory__stat="total_inactive_file 500\n",
    )  # fmt: skip
    assert host.of_containers(proc, groups) == 3000


def test_no_limit_is_infinite(machine):
    proc, groups = machine
    assert host.of_containers(proc, groups) == float("inf")
    (proc / "self" / "cgroup").write_text("4:memory:/\n0::/\n")
    group(groups / "memory", memory__limit_in_bytes="9223372036854771712")
    assert host.of_containers(proc, groups) == float("inf")


def test_what_is_free_here_is_a_sensible_number():
    cpu = torch.device("cpu")
    assert 2**20 < host.free_bytes(cpu) <= host.limit_bytes(cpu) < 2**50
    assert host.resident_bytes() > 2**20


def test_a_limit_on_the_address_space():
    code = (
        "import resource; from dino_x.machine import host;"
        "limit = 64 * 2**30; before = host.of_address_space();"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit));"
        "print(before == float('inf'), 0.5 < host.of_address_space() / limit < 1)"
    )
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.fail("the tests themselves run under ulimit -v")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "True"]
