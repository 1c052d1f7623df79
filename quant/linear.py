"""Linears and embeddings that can quantize their weights, and the function that puts them into a model.

For sharding, checkpoints and optimizers the full-precision weight stays an ordinary parameter, and the scale is another. Until
`active` is set, the scale is not used and the module computes exactly what its base class does.

Shape suffixes: O output rows, I input columns, G groups of columns in a row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from quant.method import LowPrecisionModule, like, local_parameter, replace_modules
from quant.quantizer import LEVELS, Levels, fake_quantize, fake_quantize_tokens, first_scale

SCALE = "scale"
"""The name of a module's scale; its weight is called `weight`."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a matrix is quantized."""

    bits: float
    """1, 1.58, 2, 3, 4, 6 or 8"""
    group: int | None = None
    """number of columns that share a scale; None: one scale per row"""
    scale_floor: float = 1e-5
    """smaller scales count as this value"""
    activation_bits: int | None = None
    """8: inputs are rounded to 8 bits, per token; None: inputs are not rounded"""

    @property
    def levels(self) -> Levels:
        """The values that a weight may take."""
        return LEVELS[self.bits]

    def groups(self, columns: int) -> int:
        """Number of scales of a row with `columns` columns, which the group must divide."""
        assert self.group is None or columns % self.group == 0, f"{columns} columns in groups of {self.group}"
        return 1 if self.group is None else columns // self.group

    def first_scale(self, weight_OI: Tensor) -> Tensor:
        """The initial scales (O, G) of a whole matrix."""
        return first_scale(weight_OI, self.levels, self.groups(weight_OI.shape[1]))


class _Quantized(LowPrecisionModule):
    """What both kinds of module share. `precision` and `active` are plain attributes, not stored in checkpoints."""

    precision: Precision
    weight: Tensor
    scale: Tensor

    def _add_scale(self, precision: Precision) -> None:
        self.precision, self.active = precision, False
        rows, columns = self.weight.shape
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.scale = nn.Parameter(torch.empty(rows, precision.groups(columns), dtype=dtype, device=self.weight.device))

    def used_weight(self) -> Tensor:
        """The weight (O, I) that the forward pass multiplies with, in the compute dtype."""
        return quantized(self.weight, self.scale, self.precision) if self.active else self.weight


class QuantLinear(_Quantized, nn.Linear):
    """A linear that multiplies with its quantized weight once `active`. Its bias, if it has one, stays as it is."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        precision: Precision,
        *,
        bias: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._add_scale(precision)

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return F.linear(self.used_input(input), self.used_weight(), self.bias)

    def used_input(self, input: Tensor) -> Tensor:
        """See `LowPrecisionModule`."""
        return _quantized_tokens(input) if self.active and self.precision.activation_bits is not None else input


class QuantEmbedding(_Quantized, nn.Embedding):
    """An embedding that looks up rows of its quantized table once `active`."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        precision: Precision,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self._add_scale(precision)

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...) to (..., I)."""
        return F.embedding(input, self.used_weight())


def quantized(weight: Tensor, scale: Tensor, precision: Precision) -> Tensor:
    """`fake_quantize` of a whole matrix, or of a rank's part of its weight with the rank's part of its scale.

    For a part, the gradient of the scale is a partial sum over every axis on which the scale is replicated: each rank
    contributes the terms of its columns and tokens. For a DTensor weight the result is a DTensor of the same placement.
    """
    numel = weight.numel()
    local_weight = weight.to_local() if isinstance(weight, DTensor) else weight
    local = fake_quantize(local_weight, local_parameter(scale), precision.bits, precision.scale_floor, numel)
    return like(local, weight)


def _quantized_tokens(hidden: Tensor) -> Tensor:
    if not isinstance(hidden, DTensor):
        return fake_quantize_tokens(hidden)
    # If features are split, the largest feature of a token may be on another rank.
    largest: Any = hidden.detach().abs().amax(dim=-1, keepdim=True)
    placements = [
        Replicate() if isinstance(place, Shard) and place.dim == hidden.dim() - 1 else place for place in hidden.placements
    ]
    local = fake_quantize_tokens(hidden.to_local(), largest.redistribute(placements=placements).to_local())
    return DTensor.from_local(
        local, hidden.device_mesh, hidden.placements, run_check=False, shape=hidden.shape, stride=hidden.stride()
    )


PrecisionOf = Callable[[str], Precision]
"""Name of a submodule -> how its matrix is quantized."""


def swap_modules(model: nn.Module, precision_of: PrecisionOf) -> None:
    """Replace every linear and embedding of a model by a quantizing module, in place, before the model has values."""

    def quantizing(name: str, module: nn.Linear | nn.Embedding) -> nn.Module:
        options: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
        if isinstance(module, nn.Linear):
            bias = module.bias is not None
            return QuantLinear(module.in_features, module.out_features, precision_of(name), bias=bias, **options)
        return QuantEmbedding(module.num_embeddings, module.embedding_dim, precision_of(name), **options)

    replace_modules(model, quantizing)


def quantizing_modules(model: nn.Module) -> Iterator[tuple[str, QuantLinear | QuantEmbedding]]:
    """The modules that `swap_modules` has put into a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            yield name, module
