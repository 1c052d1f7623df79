"""What each engine cannot do, by a module of its name: it is said before a run starts. Imports neither torch nor libraries."""

import importlib
from collections.abc import Iterator

from parallel.engine.limits.request import Request
from parallel.engine.names import EngineName


def obstacles(engine: EngineName, request: Request) -> Iterator[str]:
    """A line for every reason why the engine cannot carry out a run."""
    yield from importlib.import_module(f"parallel.engine.limits.{engine}").obstacles(request)


def distribution(engine: EngineName) -> str | None:
    """The name under which an engine's library is installed; None if it needs none."""
    name: str | None = getattr(importlib.import_module(f"parallel.engine.limits.{engine}"), "DISTRIBUTION", None)
    return name
