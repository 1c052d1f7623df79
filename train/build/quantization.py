"""Low-precision weights in a run: the method that its configuration names, and the phase it is in force in."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.engine.protocol import Engine
from quant.learned_scales import LearnedScales
from quant.method import Method
from train.config import Config
from train.config.resolve.quantization import low_precision_phase
from train.config.sections.quantization import QatConfig, Quant


def learned_scales(quant: QatConfig) -> LearnedScales:
    """The method of `quant=qat`."""
    return LearnedScales(
        bits=quant.bits,
        group=quant.group if isinstance(quant.group, int) else None,
        embedding_bits=quant.embedding_bits,
        activation_bits=quant.activation_bits,
        scale_floor=quant.scale_floor,
        scale_learning_rate=quant.scale_learning_rate,
    )


METHODS: dict[str, Callable[[Any], Method]] = {"qat": learned_scales}
"""The methods, by the name of their sections."""


def method_of(quant: Quant) -> Method | None:
    """The method of a section; None where all weights are in full precision."""
    return METHODS[quant.name](quant) if quant.name in METHODS else None


class Quantization:
    """The phases of one run: in full precision a method's own parameters take no part, then they are made from the weights
    and learned.

    Tokens alone decide. A step that begins at the start of the phase or later is a low-precision one; a state holds the
    method's parameters if the step before it was, so that a trunk in full precision and a run before its switch have the same
    checkpoints.
    """

    def __init__(self, config: Config, engine: Engine, compute_dtype: torch.dtype) -> None:
        """Puts the engine into full precision. `compute_dtype` is what weights are cast to before they are used."""
        self.phase = low_precision_phase(config)
        self.active = False
        self._method = method_of(config.quant)
        self._engine, self._compute_dtype = engine, compute_dtype
        if self._method is None:
            self._modules, self._own = [], []
            return
        # Pairs: a rank of a pipeline may hold two copies of a tied table.
        self._modules = [pair for module in engine.modules() for pair in self._method.modules(module)]
        self._own = [name for name, _ in engine.named_parameters() if self._method.owns(name)]
        engine.exclude(self._own)

    def restore(self, tokens: int) -> None:
        """Be in the phase of a state of so many tokens, which is about to be loaded."""
        if self.phase is not None and self.phase.holds(tokens):
            self.activate()
        else:
            self._set(False)
            self._engine.exclude(self._own)

    def activate(self) -> None:
        """Low precision from now on; the method's parameters are about to be loaded."""
        self._set(True)
        self._engine.exclude([])

    def begins(self, tokens: int) -> bool:
        """Whether the step that begins at so many tokens is the first low-precision one."""
        return self.phase is not None and not self.active and tokens >= self.phase.start

    def begin(self) -> None:
        """Make the method's parameters from the weights, the same on every layout; low precision from now on. A collective."""
        method, weights = self._method, dict(self._engine.named_parameters())
        assert method is not None

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            # The whole matrix, one at a time, so that the order of its sums depends on no layout.
            weight: Tensor = weights[method.weight_of(name)].detach()
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            value = method.first_value(name, whole.to(self._compute_dtype))
            local.copy_(value[tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))])

        self._engine.include_all(fill)
        self._set(True)

    def _set(self, active: bool) -> None:
        self.active = active
        for _, module in self._modules:
            module.active = active
