import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from dino_x.data import identity
from dino_x.data.identity import fingerprint, key, salt_file
from dino_x.errors import UserError


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A user without a salt; call it to forget what this process knows."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(identity, "_salt", None)
    return lambda: monkeypatch.setattr(identity, "_salt", None)


def test_keys_are_equal_for_equals_and_nothing_else(fresh):
    first = key("patient", "12", "ward 3")
    assert first == key("patient", " 12 ", "ward 3\0")
    assert len(first) == 20
    others = [("patient", "12", ""), ("series", "12", "ward 3"), ("patient", "1", "2ward 3")]
    assert len({first, *(key(*other) for other in others)}) == 4


def test_what_is_not_known_has_no_key(fresh):
    assert key("patient", "", "ward 3") is None
    assert key("patient", " \0") is None


def test_salt_is_made_once_and_for_the_user_alone(fresh):
    first, mark = key("patient", "12"), fingerprint()
    fresh()
    assert (key("patient", "12"), fingerprint()) == (first, mark)
    assert stat.S_IMODE(salt_file().stat().st_mode) == 0o600
    assert os.listdir(salt_file().parent) == ["salt"]
    assert salt_file().stat().st_size == 32


def test_another_salt_gives_other_keys(fresh):
    first, mark = key("patient", "12"), fingerprint()
    salt_file().unlink()
    fresh()
    assert key("patient", "12") != first
    assert fingerprint() != mark


def test_a_salt_that_others_can_read_is_closed(fresh):
    key("patient", "12")
    salt_file().chmod(0o644)
    fresh()
    key("patient", "12")
    assert stat.S_IMODE(salt_file().stat().st_mode) == 0o600


def test_processes_that_start_together_agree(fresh):
    command = "from dino_x.data.identity import key; print(key('patient', '12'))"
    with ThreadPoolExecutor(3) as pool:
        runs = [
            pool.submit(subprocess.check_output, [sys.executable, "-c", command]) for _ in range(3)
        ]
    assert len({run.result() for run in runs}) == 1


def test_without_a_place_to_keep_it_the_salt_lasts_as_long_as_the_process(
    fresh, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    first = key("patient", "12")
    assert first == key("patient", "12")
    fresh()
    assert first != key("patient", "12")


def test_a_damaged_salt_names_the_way_out(fresh):
    key("patient", "12")
    salt_file().write_bytes(b"short")
    fresh()
    with pytest.raises(UserError, match=r"salt is damaged \(5 of 32 bytes\): remove it"):
        key("patient", "12")
