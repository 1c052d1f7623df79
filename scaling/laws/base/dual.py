"""Numbers that carry their derivatives: a law's formula is written once, and its exact Jacobian comes with it.

Forward-mode differentiation (Wengert, 1964) on numpy arrays. A formula may use + - * / ** and the functions in `_CHAIN`; shapes
broadcast as in numpy, so one call evaluates a batch of parameter vectors (batch, 1) on all runs (runs,).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Function -> (x, f(x)) -> f'(x).
_CHAIN: dict[Any, Callable[[Any, Any], Any]] = {
    np.exp: lambda x, y: y,
    np.exp2: lambda x, y: np.log(2.0) * y,
    np.expm1: lambda x, y: y + 1.0,
    np.log: lambda x, y: 1.0 / x,
    np.log2: lambda x, y: 1.0 / (np.log(2.0) * x),
    np.log1p: lambda x, y: 1.0 / (1.0 + x),
    np.sqrt: lambda x, y: 0.5 / y,
    np.square: lambda x, y: 2.0 * x,
    np.tanh: lambda x, y: 1.0 - y * y,
    np.negative: lambda x, y: -1.0,
    np.positive: lambda x, y: 1.0,
}


class Dual:
    """A value and its derivatives by the number of the parameter; a derivative that is missing is zero."""

    __slots__ = ("parts", "value")

    def __init__(self, value: Any, parts: Mapping[int, Any]) -> None:
        self.value = value
        self.parts = parts

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            return NotImplemented
        if function in _CHAIN:
            (x,) = inputs
            value = function(x.value)
            slope = _CHAIN[function](x.value, value)
            return Dual(value, {key: slope * part for key, part in x.parts.items()})
        if function in _BINARY:
            return _BINARY[function](*inputs)
        raise TypeError(f"a law's formula cannot use numpy.{function.__name__}; it has {', '.join(f.__name__ for f in _CHAIN)}")

    def __add__(self, other: Any) -> "Dual":
        return _add(self, other)

    def __radd__(self, other: Any) -> "Dual":
        return _add(other, self)

    def __sub__(self, other: Any) -> "Dual":
        return _subtract(self, other)

    def __rsub__(self, other: Any) -> "Dual":
        return _subtract(other, self)

    def __mul__(self, other: Any) -> "Dual":
        return _multiply(self, other)

    def __rmul__(self, other: Any) -> "Dual":
        return _multiply(other, self)

    def __truediv__(self, other: Any) -> "Dual":
        return _divide(self, other)

    def __rtruediv__(self, other: Any) -> "Dual":
        return _divide(other, self)

    def __pow__(self, other: Any) -> "Dual":
        return _power(self, other)

    def __rpow__(self, other: Any) -> "Dual":
        return _power(other, self)

    def __neg__(self) -> "Dual":
        return Dual(-self.value, {key: -part for key, part in self.parts.items()})


def _split(x: Any) -> tuple[Any, Mapping[int, Any]]:
    return (x.value, x.parts) if isinstance(x, Dual) else (x, {})


def _sum(*terms: tuple[Any, Mapping[int, Any]]) -> dict[int, Any]:
    """The derivatives of a sum of (slope, parts)."""
    total: dict[int, Any] = {}
    for slope, parts in terms:
        for key, part in parts.items():
            added = part if slope is None else slope * part
            total[key] = total[key] + added if key in total else added
    return total


def _add(x: Any, y: Any) -> Dual:
    (a, da), (b, db) = _split(x), _split(y)
    return Dual(a + b, _sum((None, da), (None, db)))


def _subtract(x: Any, y: Any) -> Dual:
    (a, da), (b, db) = _split(x), _split(y)
    return Dual(a - b, _sum((None, da), (-1.0, db)))


def _multiply(x: Any, y: Any) -> Dual:
    (a, da), (b, db) = _split(x), _split(y)
    return Dual(a * b, _sum((b, da), (a, db)))


def _divide(x: Any, y: Any) -> Dual:
    (a, da), (b, db) = _split(x), _split(y)
    quotient = a / b
    return Dual(quotient, _sum((1.0 / b, da), (-quotient / b, db)))


def _power(x: Any, y: Any) -> Dual:
    (a, da), (b, db) = _split(x), _split(y)
    if not db:
        return Dual(a**b, _sum((b * a ** (b - 1.0), da)))
    log = np.log(a)
    value = np.exp(b * log)
    return Dual(value, _sum((value * (b / a), da), (value * log, db)))


_BINARY: dict[Any, Callable[[Any, Any], Dual]] = {
    np.add: _add,
    np.subtract: _subtract,
    np.multiply: _multiply,
    np.divide: _divide,
    np.power: _power,
    np.float_power: _power,
}
