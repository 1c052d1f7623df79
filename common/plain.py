"""Plain data: the types of JSON and YAML."""

import math
from typing import Any


def flatten(tree: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """{"model": {"num_layers": 2}} as {"model.num_layers": 2}. Empty dictionaries are dropped."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def without_nan(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
