"""Silence of the libraries that read images, while they read, and not a moment longer.

What they print and log tells our users nothing, and it can quote headers. Their settings belong to
the whole process, though, so they are put back as soon as no thread reads any more.
"""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import PIL.Image
import pydicom.config

LOGGERS = ("nibabel", "pydicom", "tifffile")

_lock = threading.Lock()
_readers = 0
_restore = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Read in silence. Any number of threads may be in here at once."""
    global _readers, _restore
    with _lock:
        if _readers == 0:
            _restore = _silenced()
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _restore.close()


def _silenced() -> ExitStack:
    """Silence the libraries; closing what is returned puts everything back."""
    restore = ExitStack()
    for name in LOGGERS:
        logger = logging.getLogger(name)
        restore.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
    settings = pydicom.config.settings
    restore.callback(setattr, settings, "reading_validation_mode", settings.reading_validation_mode)
    # Odd values are common and harmless here: nothing is validated while reading.
    settings.reading_validation_mode = pydicom.config.IGNORE
    restore.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    # ``check_size`` refuses bombs with its own limit and a reason, before Pillow warns of them.
    warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
    return restore
