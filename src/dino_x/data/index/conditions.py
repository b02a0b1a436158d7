"""Conditions on the columns of an index, such as ``modality == "CT" and thickness_mm <= 3``.

Conditions are written as in Python and parsed by Python's own parser, but never run: only
comparisons, ``and``, ``or``, ``not``, ``in`` and parentheses are understood. They become an Arrow
expression.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dino_x.data.image import ImageRef
from dino_x.data.index.headers import Record
from dino_x.data.index.table import SCHEMA, as_arrow
from dino_x.errors import UserError, nearest

NUMBER = " number"  # no column is called so
_LONGEST = 2000  # characters; Python's parser is not made for hostile depths of nesting

_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EXAMPLE = 'modality == "CT" and thickness_mm <= 3'


def select(records: Sequence[Record], sources: Sequence[Path], where: str) -> list[ImageRef]:
    """The images that meet a condition, in their order.

    Args:
        records: files, each with one image or more.
        sources: the folders that `Record.source` is a number of.
        where: the condition; names are columns of `table.SCHEMA`. An image whose value is not
            known meets no comparison but ``== None``.

    Raises: UserError for a condition that is not understood, or that no image meets.
    """
    rows = as_arrow(records, sources)
    numbered = rows.append_column(NUMBER, pa.array(range(len(rows)), pa.int64()))
    chosen = filter_of(where)(numbered).column(NUMBER).to_pylist()
    if not chosen:
        raise none_meets(where, len(rows))
    refs = [ref for record in records for ref in record.refs]
    return [refs[row] for row in chosen]


def filter_of(where: str) -> Callable[[pa.Table], pa.Table]:
    """A function that leaves of some rows those that meet a condition.

    Raises: UserError for a condition that is not understood; the function, for one that compares a
        column with a value of another kind.
    """
    condition = parse(where)

    def left(rows: pa.Table) -> pa.Table:
        try:
            return rows.filter(condition)
        except (pa.ArrowException, TypeError):
            raise UserError(
                f"data.where '{where}' compares a column with a value of another kind: texts stand"
                " in quotes, numbers do not"
            ) from None

    return left


def none_meets(where: str, images: int) -> UserError:
    """The error for a condition that none of so many images meets."""
    return UserError(f"data.where '{where}' is met by none of {images:,} images")


def columns_of(where: str) -> set[str]:
    """The names that stand in a condition; none if it is not understood, see `parse`."""
    try:
        tree = ast.parse(where.strip(), mode="eval")
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def parse(where: str) -> pc.Expression:
    """Turn a condition into an Arrow expression.

    Raises: UserError that names the part that is not understood.
    """
    if len(where) > _LONGEST:
        raise UserError(f"data.where has {len(where):,} characters, more than {_LONGEST:,}")
    try:
        tree = ast.parse(where.strip(), mode="eval").body
        return _condition(tree)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        raise UserError(f"data.where '{where}' is not a condition such as '{_EXAMPLE}'") from None


def _condition(node: ast.expr) -> pc.Expression:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        return functools.reduce(join, map(_condition, node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_condition(node.operand)
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pairs = zip(sides, node.ops, sides[1:], strict=False)
        return functools.reduce(operator.and_, (_comparison(*pair) for pair in pairs))
    raise _not_understood(node)


def _comparison(left: ast.expr, sign: ast.cmpop, right: ast.expr) -> pc.Expression:
    if isinstance(sign, ast.In | ast.NotIn):
        if isinstance(right, ast.Name):
            return _contains(left, sign, right)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise _not_understood(right)
        inside = _column(left).isin([_value(item) for item in right.elts])
        return inside if isinstance(sign, ast.In) else ~inside
    for column, value in ((left, right), (right, left)):
        if isinstance(value, ast.Constant) and value.value is None:
            if isinstance(sign, ast.Eq | ast.Is):
                return _column(column).is_null()
            if isinstance(sign, ast.NotEq | ast.IsNot):
                return _column(column).is_valid()
    compare = _COMPARE.get(type(sign))
    if compare is None:
        raise _not_understood(left)
    return compare(_operand(left), _operand(right))


def _contains(left: ast.expr, sign: ast.cmpop, right: ast.Name) -> pc.Expression:
    """Whether the text of a column has a word in it: '"MPR" in image_type'."""
    word = left.value if isinstance(left, ast.Constant) else None
    if not isinstance(word, str) or not pa.types.is_string(_column_type(right)):
        raise _not_understood(right)
    inside = pc.match_substring(_column(right), word)
    return inside if isinstance(sign, ast.In) else ~inside


def _column_type(node: ast.Name) -> pa.DataType:
    _column(node)  # so that an unknown one is refused
    kind = SCHEMA.field(node.id).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _operand(node: ast.expr) -> pc.Expression:
    return _column(node) if isinstance(node, ast.Name) else pc.scalar(_value(node))


def _column(node: ast.expr) -> pc.Expression:
    if not isinstance(node, ast.Name):
        raise _not_understood(node)
    if node.id not in SCHEMA.names:
        near = nearest(node.id, SCHEMA.names) or f" (they are: {', '.join(SCHEMA.names)})"
        raise UserError(f"data.where names a column that an index does not have: '{node.id}'{near}")
    column = pc.field(node.id)
    dictionary = pa.types.is_dictionary(SCHEMA.field(node.id).type)
    return column.cast(pa.string()) if dictionary else column


def _value(node: ast.expr) -> str | float | int:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return _number(node)


def _number(node: ast.expr) -> float | int:
    value = node.value if isinstance(node, ast.Constant) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise _not_understood(node)


def _not_understood(node: ast.expr) -> UserError:
    text = ast.unparse(node)
    return UserError(
        f"data.where does not understand '{text[:60]}': columns are compared with texts in quotes"
        f" and numbers, as in '{_EXAMPLE}'"
    )
