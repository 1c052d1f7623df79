"""Numbers for people."""

import math
from typing import Any


def number(value: Any, digits: int = 4) -> str:
    """A number for people: 4 significant digits, with a power of ten from 10,000 on."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    if value == 0:
        return "0"
    if 9999.5 <= abs(value) < math.inf or abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.0f}"
