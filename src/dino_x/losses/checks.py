"""What the losses refuse, before any work: every message names the argument, value and cure.

Shape letters: N rows, D features, K prototypes, P pairs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dino_x.losses import transfer


class NotFiniteError(ValueError):
    """NaN or infinity among the inputs: in training, the sign of a run that has diverged."""


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input is float64, else float32: half precision is never accumulated in."""
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; expected a finite number above 0")


def check_share(name: str, value: float) -> None:
    """Refuse a number outside 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected 0 to 1")


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a count below ``least``."""
    if value < least:
        raise ValueError(f"{name} is {value}; expected {least} or more")


def check_matrix(name: str, matrix: Tensor, *, rows: str, may_be_empty: bool = False) -> None:
    """Refuse what is not a floating-point matrix with rows and columns."""
    shape = tuple(matrix.shape)
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise ValueError(
            f"{name} is {matrix.dtype} of shape {shape}; expected a floating-point matrix, "
            f"one row a {rows}"
        )
    if (shape[0] == 0 and not may_be_empty) or shape[1] == 0:
        raise ValueError(f"{name} has shape {shape}; expected at least one {rows} and one column")


def check_same_width(name: str, matrix: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse bottlenecks and prototypes that do not live in the same space."""
    if matrix.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} has {matrix.shape[1]} columns; expected {other.shape[1]}, as {other_name} has"
        )


def check_vector(name: str, vector: Tensor, length: int, one_per: str) -> None:
    """Refuse a vector that has not one finite value for each of what it describes."""
    if tuple(vector.shape) != (length,):
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; expected ({length},), one value a {one_per}"
        )
    check_finite(name, vector)


@dataclass
class LateChecks:
    """Checks for finite values whose results wait on their device to be read, all at once.

    Attributes:
        noted: what was checked, and which of its rows are finite, bool [N].
    """

    noted: list[tuple[str, Tensor]] = field(default_factory=list)

    def raise_if_any(self) -> None:
        """Raise NotFiniteError for the first that failed. One read, whatever their number."""
        if not self.noted:
            return
        wholes = torch.stack([finite_N.all() for _, finite_N in self.noted])
        if transfer.read(wholes.all()):
            return
        for (name, finite_N), whole in zip(self.noted, transfer.read(wholes), strict=True):
            if not whole:
                raise not_finite(name, transfer.read(finite_N))


_late: ContextVar[LateChecks | None] = ContextVar("late checks", default=None)


@contextmanager
def checked_late() -> Iterator[LateChecks]:
    """A context in which ``check_finite`` waits for nothing: its results are to be read at the end.

    So a GPU is read once for many checks. Other checks are made at once, for they know their
    answer from shapes and types.
    """
    checks = LateChecks()
    token = _late.set(checks)
    try:
        yield checks
    finally:
        _late.reset(token)


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, saying in how many rows and in which first; see ``checked_late``."""
    if values.numel() == 0:
        return
    finite_N = torch.isfinite(values.detach()).reshape(len(values), -1).all(dim=1)
    late = _late.get()
    if late is not None:
        late.noted.append((name, finite_N))
    elif not transfer.read(finite_N.all()):
        raise not_finite(name, transfer.read(finite_N))


def not_finite(name: str, finite_N: list[bool]) -> NotFiniteError:
    """The error for values of which some rows are not finite."""
    return NotFiniteError(
        f"{name} is not finite at {finite_N.count(False)} of {len(finite_N)} indices, the first of"
        f" them {finite_N.index(False)}; expected finite values"
    )


def check_pairs(pairs_P2: Tensor, students: int, teachers: int) -> None:
    """Refuse pairs of the wrong type or shape, and rows that do not exist.

    Args:
        pairs_P2: on the CPU.
        students, teachers: rows that there are.
    """
    shape = tuple(pairs_P2.shape)
    if pairs_P2.dtype != torch.int64 or len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"pairs_P2 is {pairs_P2.dtype} of shape {shape}; expected int64 [P, 2]")
    if shape[0] == 0:
        raise ValueError("pairs_P2 has no rows; expected at least one (student, teacher) pair")
    found = pairs_P2.numpy()
    limits = zip(found.min(axis=0).tolist(), found.max(axis=0).tolist(), strict=True)
    sides = (("student", students), ("teacher", teachers))
    for (side, rows), ends in zip(sides, limits, strict=True):
        for index in ends:
            if not 0 <= index < rows:
                raise ValueError(
                    f"pairs_P2 names {side} row {index}; expected 0 to {rows - 1}, "
                    f"as there are {rows} {side} rows"
                )
