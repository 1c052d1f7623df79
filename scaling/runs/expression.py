"""Expressions over the columns of a table: what `--where`, `--holdout` and `--rename` take.

The language is that part of pandas' queries that can only compute: columns (in backticks where a name is no word), numbers
and text, comparisons, `and or not & | ~`, `in`, arithmetic, and the methods and functions below. It is evaluated here and not
by pandas, whose queries reach any Python object, so that a study's command line, copied from somewhere, runs no code.
"""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from common.words import nearest

_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
    ast.Mod: operator.mod, ast.FloorDiv: operator.floordiv,
}  # fmt: skip
_METHODS = ("isna", "notna", "isin", "between", "abs", "min", "max", "mean", "median")
_TEXT_METHODS = ("contains", "startswith", "endswith", "lower", "upper")
_FUNCTIONS = {"log": np.log, "log2": np.log2, "log10": np.log10, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
# Text stays as it is; then a name in backticks, and the two signs that pandas takes for `and` and `or`.
_TOKENS = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]+)`|(&)|(\|)""")


class ExpressionError(ValueError):
    """An expression that cannot be evaluated, or may not."""


def evaluate(expression: str, frame: pd.DataFrame) -> Any:
    """The expression's value: a column (with the table's index), or a number or text where no column is in it.

    Raises:
        ExpressionError: it is not an expression of this language, names a column that is missing, or mixes text and numbers.
    """
    names: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        text, name, both, _ = match.groups()
        if name is not None:
            word = f"quoted_column_{len(names)}"
            names[word] = name
            return f" {word} "
        return text if text is not None else " and " if both else " or "

    try:
        tree = ast.parse(_TOKENS.sub(replace, expression).strip(), mode="eval")
        with np.errstate(all="ignore"):
            return _Evaluator(frame, names).value(tree.body)
    except ExpressionError:
        raise
    except SyntaxError:
        raise ExpressionError("it cannot be read; columns, numbers, text, comparisons, and, or, not, in") from None
    except Exception as error:  # pandas raises whatever it does
        raise ExpressionError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


class _Evaluator:
    def __init__(self, frame: pd.DataFrame, names: dict[str, str]) -> None:
        self.frame, self.names = frame, names

    def value(self, node: ast.expr) -> Any:
        how = getattr(self, f"_{type(node).__name__.lower()}", None)
        return self._refuse(node) if how is None else how(node)

    def _refuse(self, node: ast.expr) -> NoReturn:
        raise ExpressionError(
            f"{ast.unparse(node)} is not allowed: there are columns, numbers, text, comparisons, and, or, not, in, arithmetic, "
            f"{', '.join(_FUNCTIONS)}, .{', .'.join(_METHODS)}, .str.{', .str.'.join(_TEXT_METHODS)}"
        )

    def _name(self, node: ast.Name) -> Any:
        name = self.names.get(node.id, node.id)
        if name not in self.frame.columns:
            near = nearest(name, list(map(str, self.frame.columns)))
            raise ExpressionError(f"no column {name!r}" + (f"; did you mean {near!r}?" if near else ""))
        return self.frame[name]

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, bool | str):
            return node.value
        if isinstance(node.value, int | float):
            return float(node.value)  # powers of whole numbers would have no end
        return self._refuse(node)

    def _list(self, node: ast.List | ast.Tuple) -> list[Any]:
        return [self.value(item) for item in node.elts]

    _tuple = _list

    def _boolop(self, node: ast.BoolOp) -> Any:
        total = self.value(node.values[0])
        for part in node.values[1:]:
            total = total & self.value(part) if isinstance(node.op, ast.And) else total | self.value(part)
        return total

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not | ast.Invert):
            return ~value if isinstance(value, pd.Series) else not value
        return -value if isinstance(node.op, ast.USub) else +value

    def _binop(self, node: ast.BinOp) -> Any:
        if type(node.op) not in _ARITHMETIC:
            self._refuse(node)
        return _ARITHMETIC[type(node.op)](self.value(node.left), self.value(node.right))

    def _compare(self, node: ast.Compare) -> Any:
        left, total = self.value(node.left), None
        for sign, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            left = self._as_written(left, right)
            if isinstance(sign, ast.In | ast.NotIn) or isinstance(right, list):
                inside = left.isin(right)
                part = ~inside if isinstance(sign, ast.NotIn | ast.NotEq) else inside
            elif type(sign) in _COMPARE:
                part = _COMPARE[type(sign)](left, right)
            else:
                self._refuse(node)
            total, left = part if total is None else total & part, right
        return total

    def _call(self, node: ast.Call) -> Any:
        function = node.func
        arguments = [self.value(word) for word in node.args]
        options = {word.arg: self.value(word.value) for word in node.keywords if word.arg is not None}
        if isinstance(function, ast.Name) and function.id in _FUNCTIONS and not options:
            return _FUNCTIONS[function.id](*arguments)
        if isinstance(function, ast.Attribute):
            owner = function.value
            if isinstance(owner, ast.Attribute) and owner.attr == "str" and function.attr in _TEXT_METHODS:
                text = self._as_written(self._column(owner.value), "").str
                options = {"na": False, **options} if function.attr in _TEXT_METHODS[:3] else options
                return getattr(text, function.attr)(*arguments, **options)
            if function.attr in _METHODS:
                column = self._as_written(self._column(owner), arguments[0] if arguments else None)
                return getattr(column, function.attr)(*arguments, **options)
        return self._refuse(node)

    def _as_written(self, column: Any, other: Any) -> Any:
        """A column of numbers with some text in it, where it meets text: as text, all of it."""
        word = other[0] if isinstance(other, list) and other else other
        texts = self.frame.attrs.get("texts", {})
        if not isinstance(word, str) or not isinstance(column, pd.Series) or column.name not in texts:
            return column
        known = texts[column.name]
        return pd.Series([known.get(index) for index in column.index], index=column.index, name=column.name, dtype=object)

    def _column(self, node: ast.expr) -> pd.Series:
        value = self.value(node)
        if not isinstance(value, pd.Series):
            raise ExpressionError(f"{ast.unparse(node)} is not a column")
        return value
