"""Low-precision weights in a run: the method that its configuration names, and when it applies."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.engine.protocol import Engine
from quant.learned_scales import LearnedScales
from quant.method import Method
from quant.noise.method import Distribution, Noise, WeightNoise
from train.config import Config
from train.config.resolve.quantization import low_precision_phase
from train.config.sections.quantization import NoiseConfig, QatConfig, Quant


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


def weight_noise(quant: NoiseConfig, distribution: Distribution) -> WeightNoise:
    """The method of `quant=gaussian` and `quant=diffq`."""
    noise = Noise(distribution=distribution, b_init=quant.b_init, b_target=quant.b_target, block=quant.block)
    method = WeightNoise(noise=noise, penalty=quant.penalty, bits_learning_rate=quant.bits_learning_rate)
    return replace(method, outer=()) if quant.outer else method


METHODS: dict[str, Callable[[Any], Method]] = {
    "qat": learned_scales,
    "gaussian": partial(weight_noise, distribution="rounded_normal"),
    "diffq": partial(weight_noise, distribution="uniform"),
}
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
        self._engine, self._compute_dtype, self._seed = engine, compute_dtype, config.run.seed
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

    def bit_widths(self) -> dict[str, list[float]]:
        """The learned bit widths of every matrix's blocks, by its name, on every rank; empty where none are learned. A
        collective."""
        method = self._method
        if method is None or not self.active:
            return {}
        whole = {name: self._engine.whole(name) for name in self._own}
        mine = {method.weight_of(name): method.bit_widths(value).flatten().tolist() for name, value in whole.items()}
        of_ranks: list[dict[str, list[float]]] = [{}] * dist.get_world_size()
        dist.all_gather_object(of_ranks, mine)
        return {name: widths for of_rank in of_ranks for name, widths in of_rank.items() if widths}

    def begins(self, tokens: int) -> bool:
        """Whether the step that begins at `tokens` tokens is the first in low precision."""
        return self.phase is not None and not self.active and tokens >= self.phase.start

    def begin(self) -> None:
        """Switch to low precision: compute the method's parameters from the weights, equal on every layout. A collective."""
        method = self._method
        assert method is not None

        def fill(name: str, local: Tensor, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
            # From the whole matrix, so that the order of its sums is the same on every layout.
            whole = self._engine.whole(method.weight_of(name))
            value = method.first_value(name, whole.to(self._compute_dtype))
            local.copy_(value[tuple(slice(start, start + size) for start, size in zip(offset, local.shape, strict=True))])

        self._engine.include_all(fill)
        self._set(True)

    def prepare_step(self, step: int) -> None:
        """The optimizer step number `step` begins, in the precision that was set."""
        if self.active and self._method is not None:
            self._method.prepare_step(self._modules, seed=self._seed, step=step)

    def _set(self, active: bool) -> None:
        self.active = active
        for _, module in self._modules:
            module.active = active
