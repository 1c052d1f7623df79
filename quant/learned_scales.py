"""Quantization-aware training with learned scales: which matrix of a model has which precision, and what its scales need."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from quant.linear import SCALE, Precision, QuantEmbedding, QuantLinear, quantizing_modules, swap_modules
from quant.method import Method, Treatment

SCALE_EPS = 1e-15
"""AdamW's epsilon for scales: LSQ's factor makes their gradients so small (1e-9 in large matrices) that 1e-8 holds them."""


@dataclass(frozen=True, kw_only=True)
class LearnedScales(Method):
    """The quantizers of `quant.quantizer` on every linear and embedding of a model."""

    bits: float
    """of the matrices, but for those of the outer submodules"""
    group: int | None
    """columns that share a scale; None: a row has one"""
    embedding_bits: float
    """the outer submodules have at least this width"""
    activation_bits: int | None
    """8: inputs are rounded to 8 bits per token, but what the outer submodules multiply; None: they are left alone"""
    scale_floor: float
    """no scale counts as less"""
    scale_learning_rate: float
    """learning rate of a scale, times its weight's over the largest level"""
    outer: tuple[str, ...] = ("embedding", "head")
    """submodules at the model's ends, tied or not"""

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
        """Family, and what shares a scale."""
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
        """The learning rate of a scale is its weight's, over the largest level that the scale multiplies.

        A step of Adam moves a number by about the learning rate, whatever the size of its gradient. Over the largest level it
        moves no quantized value by more. (The paper on quantization-aware pretraining does not say what it does; arXiv
        2509.22935.)
        """
        largest = self.precision(parameter.rpartition(".")[0]).levels.largest
        return Treatment(self.scale_learning_rate * weight_lr_scale / largest, SCALE_EPS)

    def first_value(self, parameter: str, weight: Tensor) -> Tensor:
        """See `Method.first_value`."""
        return self.precision(parameter.rpartition(".")[0]).first_scale(weight)
