"""Quantization-aware training in a run: how each matrix is quantized, and the switch to it on the token axis."""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.compose import StageModel
from parallel.engine.native import NativeEngine
from quant.linear import SCALE, Precision, quantizing_modules, swap_modules
from train.config import Config
from train.config.quantization import qat_phase
from train.config.sections import QatConfig

OUTER = ("embedding", "head")
"""The submodules at `quant.embedding_bits`, where that is more; what the head multiplies is never rounded, tied or not."""


def precision_of(quant: QatConfig, module: str) -> Precision:
    """How the matrix of a submodule is quantized."""
    return Precision(
        bits=max(quant.bits, quant.embedding_bits) if module in OUTER else quant.bits,
        group=quant.group if isinstance(quant.group, int) else None,
        scale_floor=quant.scale_floor,
        activation_bits=None if module in OUTER else quant.activation_bits,
    )


def is_scale(parameter: str) -> bool:
    """Whether a parameter of that name is a scale."""
    return parameter.endswith(f".{SCALE}")


def weight_of(scale: str) -> str:
    """The name of the weight that a scale belongs to."""
    return f"{scale.removesuffix(SCALE)}weight"


def quantizer_name(quant: QatConfig) -> str:
    """What the record calls it: family, and what shares a scale."""
    return f"{precision_of(quant, '').levels.family}/{quant.group}"


def quantize_stage(quant: QatConfig, model: StageModel) -> Collection[str]:
    """Put quantizing modules into a stage, in place. Returns the names of their scales."""
    swap_modules(model, partial(precision_of, quant))
    return [f"{name}.{SCALE}" for name, _ in quantizing_modules(model)]


class Quantization:
    """The phases of one run: in full precision its scales take no part, then they are made from the weights and learned.

    Tokens alone decide. A step that begins at the start of the phase or later is quantized; a state holds scales if the step
    before it was, so that a trunk in full precision and a run before its switch have the same checkpoints.
    """

    def __init__(self, config: Config, engine: NativeEngine, compute_dtype: torch.dtype) -> None:
        """Puts the engine into full precision. `compute_dtype` is what weights are cast to before they are used."""
        self.phase = qat_phase(config)
        self.active = False
        self._engine, self._compute_dtype = engine, compute_dtype
        # Pairs: a rank of a pipeline may hold two copies of a tied table.
        self._modules = [pair for part in engine.parts for pair in quantizing_modules(part.module)]
        self._scales = [name for name, _ in engine.named_parameters if is_scale(name)]
        engine.suspend(self._scales)

    def restore(self, tokens: int) -> None:
        """Be in the phase of a state of so many tokens, which is about to be loaded."""
        if self.phase is not None and self.phase.holds(tokens):
            self.activate()
        else:
            self._set(False)
            self._engine.suspend(self._scales)

    def activate(self) -> None:
        """Quantize from now on; the scales are about to be loaded."""
        self._set(True)
        self._engine.suspend([])

    def begins(self, tokens: int) -> bool:
        """Whether the step that begins at so many tokens is the first quantized one."""
        return self.phase is not None and not self.active and tokens >= self.phase.start

    def begin(self) -> None:
        """Make scales from the weights, the same on every layout, and quantize from now on. A collective."""
        weights, modules = dict(self._engine.named_parameters), dict(self._modules)

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            # The whole matrix, one at a time, so that the order of its sums depends on no layout.
            weight: Tensor = weights[weight_of(name)].detach()
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            scale = modules[name.removesuffix(f".{SCALE}")].precision.first_scale(whole.to(self._compute_dtype))
            local.copy_(scale[tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))])

        self._engine.wake(fill)
        self._set(True)

    def _set(self, active: bool) -> None:
        self.active = active
        for _, module in self._modules:
            module.active = active
