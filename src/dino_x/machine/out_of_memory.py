"""One kind of error for running out of memory, whichever library raises it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Words in the messages of libraries without a class for it: PyTorch's CPU allocator, oneDNN, C++.
WORDS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "not enough memory",
    "could not create a memory",
    "could not create a primitive",
    "std::bad_alloc",
    "Cannot allocate memory",
)


class OutOfMemory(Exception):  # noqa: N818 as PyTorch's own
    """Memory ran out, here or in another process; the message says for what.

    Attributes:
        told: whether all processes of the run know, so that rank 0 prints it.
    """

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    if not isinstance(error, RuntimeError | OSError):
        return False
    return any(word in str(error) for word in WORDS)


def asked_for(error: BaseException) -> str:
    """The part of the message that says how much was asked for; else the first line."""
    text = str(error).strip()
    for start in ("tried to allocate", "Tried to allocate", "allocate"):
        if start in text:
            sentence = text[text.index(start) :].split(". ")[0].splitlines()[0]
            return sentence[0].lower() + sentence[1:]
    if not text:
        return type(error).__name__
    return text.splitlines()[0]


@contextmanager
def caught() -> Iterator[None]:
    """A context in which every error that means that memory ran out becomes ``OutOfMemory``."""
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
