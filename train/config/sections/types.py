"""Types and marks that all sections of the configuration share."""

import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import ConfigDict, Field

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False)

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class _Free:
    """See `FREE`."""


FREE = _Free()
"""Marks a key, or a whole section, that no loss depends on: a resumed run may change it. The other keys are its identity."""


@cache
def identity_keys(section: type[object]) -> frozenset[str]:
    """The keys of a section's class that are not marked `FREE`."""
    hints = typing.get_type_hints(section, include_extras=True)
    return frozenset(key for key, hint in hints.items() if FREE not in getattr(hint, "__metadata__", ()))
