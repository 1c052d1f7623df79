"""Quantization-aware training with learned scales: the precision of each matrix of a model, and how its scales are trained."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from quant.linear import SCALE, Precision, QuantEmbedding, QuantLinear, quantizing_modules, swap_modules
from quant.method import Method, Treatment

SCALE_EPS = 1e-15
"""AdamW's epsilon for scales: LSQ's factor makes their gradients so small (1e-9 in large matrices) that 1e-8 stops them."""


@dataclass(frozen=True, kw_only=True)
class LearnedScales(Method):
    """The quantizers of `quant.quantizer` on every linear and embedding of a model."""

    bits: float
    """bits of all matrices but those of the outer submodules"""
    group: int | None
    """number of columns that share a scale; None: one scale per row"""
    embedding_bits: float
    """least bits of the outer submodules"""
    activation_bits: int | None
    """8: inputs of all but the outer submodules are rounded to 8 bits, per token; None: inputs are not rounded"""
    scale_floor: float
    """smaller scales count as this value"""
    scale_learning_rate: float
    """the learning rate of a scale is this times its weight's, over the largest level"""
    outer: tuple[str, ...] = ("embedding", "head")
    """submodules at the ends of the model, tied or not"""

    def precision(self, module: str) -> Precision:
        """How the matrix of a submodule is quantized."""
        return Precision(
            bits=max(self.bits, self.embedding_bits) if module in self.outer else self.bits,
            group=self.group,
            scale_floor=self.scale_floor,
            activation_bits=None if module in self.outer else self.activation_bits,
        )

    @property
    def description(self) -> str:
        """Quantizer family, and how many columns share a scale."""
        return f"{self.precision('').levels.family}/{self.group or 'row'}"

    def convert(self, model: nn.Module) -> Collection[str]:
        """See `Method.convert`."""
        swap_modules(model, self.precision)
        return [f"{name}.{SCALE}" for name, _ in quantizing_modules(model)]

    def owns(self, parameter: str) -> bool:
        """See `Method.owns`."""
        return parameter.endswith(f".{SCALE}")

    def modules(self, model: nn.Module) -> Iterator[tuple[str, QuantLinear | QuantEmbedding]]:
        """See `Method.modules`."""
        return quantizing_modules(model)

    def weight_of(self, parameter: str) -> str:
        """See `Method.weight_of`."""
        return f"{parameter.removesuffix(SCALE)}weight"

    def tied(self, embedding: str) -> Collection[str]:
        """See `Method.tied`."""
        return [f"{embedding}.{SCALE}"]

    def treatment(self, parameter: str, weight_lr_scale: float) -> Treatment:
        """The learning rate of a scale is its weight's, divided by the largest level that the scale multiplies.

        A step of Adam moves a parameter by about the learning rate, for gradients of any size. Divided by the largest
        level, a step of the scale moves no quantized value by more. (The paper on quantization-aware pretraining, arXiv
        2509.22935, does not say what it does.)
        """
        largest = self.precision(parameter.rpartition(".")[0]).levels.largest
        return Treatment(self.scale_learning_rate * weight_lr_scale / largest, SCALE_EPS)

    def first_value(self, parameter: str, weight: Tensor) -> Tensor:
        """See `Method.first_value`."""
        return self.precision(parameter.rpartition(".")[0]).first_scale(weight)
