"""What the losses refuse, before any work: every message names the argument, value and cure.

Shape letters: N rows, D features, K prototypes, P pairs.
"""

import math

import torch
from torch import Tensor


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


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity, saying in how many rows and in which first."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad_rows = (~finite).reshape(len(values), -1).any(dim=1).nonzero()[:, 0]
        first = int(bad_rows[0])
        raise NotFiniteError(
            f"{name} is not finite at {len(bad_rows)} of {len(values)} indices, the first of them "
            f"{first}; expected finite values"
        )


def check_pairs(pairs_P2: Tensor, students: int, teachers: int) -> None:
    """Refuse pairs of the wrong type or shape, and rows that do not exist."""
    shape = tuple(pairs_P2.shape)
    if pairs_P2.dtype != torch.int64 or len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"pairs_P2 is {pairs_P2.dtype} of shape {shape}; expected int64 [P, 2]")
    if shape[0] == 0:
        raise ValueError("pairs_P2 has no rows; expected at least one (student, teacher) pair")
    low, high = pairs_P2.aminmax(dim=0)
    for column, (side, rows) in enumerate((("student", students), ("teacher", teachers))):
        for index in (int(low[column]), int(high[column])):
            if not 0 <= index < rows:
                raise ValueError(
                    f"pairs_P2 names {side} row {index}; expected 0 to {rows - 1}, "
                    f"as there are {rows} {side} rows"
                )
