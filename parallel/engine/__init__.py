"""Engines: ways to carry out training steps, under one protocol. Each is a module with a function `build`."""

import importlib
from typing import TYPE_CHECKING

from parallel.engine.names import EngineName

if TYPE_CHECKING:
    import torch

    from parallel.engine.blueprint import Blueprint
    from parallel.engine.protocol import Engine
    from parallel.mesh import Meshes


def build(name: EngineName, blueprint: "Blueprint", meshes: "Meshes", device: "torch.device") -> "Engine":
    """Build the named engine on this rank. Its library is imported only when this is called."""
    engine: Engine = importlib.import_module(f"parallel.engine.{name}").build(blueprint, meshes, device)
    return engine
