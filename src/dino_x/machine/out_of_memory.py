"""Running out of memory, whichever library says it, as one kind of error."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How libraries say it that have no class for it: PyTorch's CPU allocator, oneDNN, C++.
WORDS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory",
    "std::bad_alloc",
    "Cannot allocate memory",
)


class OutOfMemory(Exception):  # noqa: N818 as PyTorch's own
    """Memory ran out, here or in another process; the message says for what.

    Attributes:
        told: whether all processes of the run know, so that the first one says it.
    """

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError | OSError) and any(w in str(error) for w in WORDS)


def asked_for(error: BaseException) -> str:
    """The part of the message that says how much was asked for; else the first line."""
    text = str(error)
    for start in ("tried to allocate", "Tried to allocate", "allocate"):
        if start in text:
            sentence = text[text.index(start) :].split(". ")[0].splitlines()[0]
            return sentence[0].lower() + sentence[1:]
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__


@contextmanager
def caught() -> Iterator[None]:
    """Whatever says that memory ran out becomes ``OutOfMemory``."""
    message = None
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        message = asked_for(error)
    if message is not None:  # out of the handler: the error's frames hold what filled the memory
        raise OutOfMemory(message)


def let_go(error: BaseException | None) -> None:
    """Empty the frames of an error and of those before it: they hold what filled the memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
