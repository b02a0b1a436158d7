"""Libraries are silent while images are read, and as before when none is read."""

import logging
import threading
import warnings

import numpy as np
import pydicom
import pytest

from dino_x.data.readers.quiet import LOGGERS, quiet
from dino_x.data.readers.registry import read


def state():
    return (
        pydicom.config.settings.reading_validation_mode,
        [logging.getLogger(name).disabled for name in LOGGERS],
        [logging.getLogger(name).level for name in LOGGERS],
        list(warnings.filters),
    )


def test_reading_leaves_every_setting_as_it_was(write_png, write_dicom):
    before = state()
    read(write_png("a.png"))
    read(write_dicom(np.zeros((8, 8), np.uint16)))
    assert state() == before


def test_it_is_quiet_until_the_last_thread_has_read():
    before = state()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with quiet():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with quiet():
        thread.start()
        inside.wait(10)
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE
    assert logging.getLogger("nibabel").disabled
    leave.set()
    thread.join()
    assert state() == before


def test_settings_come_back_after_an_error():
    before = state()
    with pytest.raises(ValueError, match="odd"), quiet():
        raise ValueError("odd")
    assert state() == before
