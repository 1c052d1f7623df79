"""Low-precision weights in a run: the method that its configuration names, and when it applies."""

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
    """The method of a section; None if all weights stay in full precision."""
    return METHODS[quant.name](quant) if quant.name in METHODS else None


class Quantization:
    """Switches one run from full to low precision.

    In full precision the method's parameters are excluded from training and checkpoints. At the switch they are computed from
    the weights, and from then on learned.

    Only the number of tokens decides: a step that begins at the start of the phase or later is in low precision. A state has
    the method's parameters if its last step was, so a run before its switch has the same checkpoints as a full-precision run.
    """

    def __init__(self, config: Config, engine: Engine, compute_dtype: torch.dtype) -> None:
        """Put the engine into full precision. `compute_dtype`: weights are cast to it before they are used."""
        self.phase = low_precision_phase(config)
        self.active = False
        self._method = method_of(config.quant)
        self._engine, self._compute_dtype = engine, compute_dtype
        if self._method is None:
            self._modules, self._own = [], []
            return
        # Pairs, not a dictionary: a pipeline rank may have two copies of a tied table, with the same name.
        self._modules = [pair for module in engine.modules() for pair in self._method.modules(module)]
        self._own = [name for name, _ in engine.named_parameters() if self._method.owns(name)]
        engine.exclude(self._own)

    def restore(self, tokens: int) -> None:
        """Switch to the precision of a state after `tokens` tokens, before it is loaded."""
        if self.phase is not None and self.phase.holds(tokens):
            self.activate()
        else:
            self._set(False)
            self._engine.exclude(self._own)

    def activate(self) -> None:
        """Switch to low precision before a state is loaded that has the method's parameters."""
        self._set(True)
        self._engine.exclude([])

    def begins(self, tokens: int) -> bool:
        """Whether the step that begins at `tokens` tokens is the first in low precision."""
        return self.phase is not None and not self.active and tokens >= self.phase.start

    def begin(self) -> None:
        """Switch to low precision: compute the method's parameters from the weights, equal on every layout. A collective."""
        method, weights = self._method, dict(self._engine.named_parameters())
        assert method is not None

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            # From the whole matrix, so that the order of its sums is the same on every layout.
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
