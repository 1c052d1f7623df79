"""The names of the engines. Standard library only."""

from typing import Literal

EngineName = Literal["native", "deepspeed", "megatron"]
"""Each names a module of `parallel.engine` and one of `parallel.engine.limits`."""

DEFAULT: EngineName = "native"
"""The engine that can carry out every layout; trained weights are used with it."""

Offload = Literal["none", "optimizer", "parameters"]
"""What an engine keeps in the host's memory: nothing, the optimizer's state, or that and the parameters."""
