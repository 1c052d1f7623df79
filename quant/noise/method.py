"""Training with pseudo-quantization noise: modules that add noise to their weights in training; a bit width for each block.

Gaussian weight sampling (Ahn & Yoo, arXiv 2505.11170) and, with uniform noise, a baseline in the spirit of DiffQ (Défossez et
al., arXiv 2104.09987) on the same blocks. Of the first only the abstract and reviews of its successor are known here. Our own
are the side of a block (32), how the penalty is written (lambda mean |b - b_target| over the blocks of a matrix, its gradient
added after clipping), the learning rate of bit widths, that they stay between their two ends, and that evaluation uses the
weights without noise.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from quant.method import LowPrecisionModule, Method, Treatment, like, local_parameter, replace_modules
from quant.noise.add import add_noise
from quant.noise.draws import ROW_BITS, STEP_BITS, WORD_BITS, noise_key

BITS = "bits"
"""The name of a module's parameter of bit widths."""
BITS_EPS = 1e-15
"""AdamW's epsilon for bit widths: in large models their gradients are smaller than the usual 1e-8, which would stop them."""

Distribution = Literal["rounded_normal", "uniform"]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of a matrix."""

    distribution: Distribution
    b_init: float
    """bit width of every block at first"""
    b_target: float
    """bit width that the penalty pulls to; at most `b_init`"""
    block: int
    """side of the square blocks that share a bit width and a largest weight; a multiple of four"""


class _Noisy(LowPrecisionModule):
    """What both kinds of module share. In training mode the active module adds noise; otherwise it uses the weight as it is.

    The parameter `bits` (O / n, I / n) is the bit width of each block of side n.
    """

    noise: Noise
    weight: Tensor
    bits: Tensor
    key: Tensor
    """key of the weight's draws, on its device; set by `Method.prepare_step`"""
    step: Tensor
    """number of the optimizer step, on the same device"""

    def _add_bits(self, noise: Noise) -> None:
        self.noise, self.active = noise, False
        rows, columns = self.weight.shape
        assert rows % noise.block == columns % noise.block == 0, f"{rows} x {columns} in blocks of {noise.block}"
        assert rows <= 1 << ROW_BITS, f"{rows} rows: draws are not numbered for so many"
        assert columns <= 4 << WORD_BITS, f"{columns} columns: draws are not numbered for so many"
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        shape = (rows // noise.block, columns // noise.block)
        self.bits = nn.Parameter(torch.empty(shape, dtype=dtype, device=self.weight.device))

    def used_weight(self) -> Tensor:
        """The weight (O, I) that the forward pass multiplies with, in the compute dtype."""
        if not (self.active and self.training):
            return self.weight
        weight, noise = self.weight, self.noise
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        bits, uniform = local_parameter(self.bits), noise.distribution == "uniform"
        return like(add_noise(local, bits, self.key, self.step, offset_of(weight), noise.block, uniform=uniform), weight)


class NoisyLinear(_Noisy, nn.Linear):
    """A linear that multiplies with its noised weight. Its bias, if it has one, has no noise."""

    def __init__(self, in_features: int, out_features: int, noise: Noise, **options: Any) -> None:
        """`options`: bias, device and dtype."""
        super().__init__(in_features, out_features, **options)
        self._add_bits(noise)

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        return F.linear(input, self.used_weight(), self.bias)


class NoisyEmbedding(_Noisy, nn.Embedding):
    """An embedding that looks up rows of its noised table."""

    def __init__(self, num_embeddings: int, embedding_dim: int, noise: Noise, **options: Any) -> None:
        """`options`: device and dtype."""
        super().__init__(num_embeddings, embedding_dim, **options)
        self._add_bits(noise)

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...) to (..., I)."""
        return F.embedding(input, self.used_weight())


def offset_of(weight: Tensor) -> tuple[int, int]:
    """Row and column of the whole matrix where this rank's part of an evenly split weight begins."""
    offset = [0, 0]
    if isinstance(weight, DTensor):
        for axis, place in enumerate(weight.placements):
            if isinstance(place, Shard):
                mesh = weight.device_mesh
                offset[place.dim] += mesh.get_local_rank(axis) * (weight.shape[place.dim] // mesh.size(axis))
    return offset[0], offset[1]


@dataclass(frozen=True, kw_only=True)
class WeightNoise(Method):
    """Noise on every linear of a model's blocks."""

    noise: Noise
    penalty: float
    """weight, in the objective, of each matrix's mean distance of its bit widths from `b_target`"""
    bits_learning_rate: float
    """the learning rate of (b - b_target) / (b_init - b_target) is this times the schedule's"""
    outer: tuple[str, ...] = ("embedding", "head")
    """submodules at the ends of the model, which stay in full precision"""

    @property
    def description(self) -> str:
        """Distribution and blocks."""
        return f"{self.noise.distribution}/{self.noise.block}x{self.noise.block}"

    def convert(self, model: nn.Module) -> Collection[str]:
        """See `Method.convert`."""

        def noisy(name: str, module: nn.Linear | nn.Embedding) -> nn.Module | None:
            if name in self.outer:
                return None
            options = {"device": module.weight.device, "dtype": module.weight.dtype}
            if isinstance(module, nn.Linear):
                bias = module.bias is not None
                return NoisyLinear(module.in_features, module.out_features, self.noise, bias=bias, **options)
            return NoisyEmbedding(module.num_embeddings, module.embedding_dim, self.noise, **options)

        replace_modules(model, noisy)
        return [f"{name}.{BITS}" for name, _ in self.modules(model)]

    def modules(self, model: nn.Module) -> Iterator[tuple[str, NoisyLinear | NoisyEmbedding]]:
        """See `Method.modules`."""
        for name, module in model.named_modules():
            if isinstance(module, NoisyLinear | NoisyEmbedding):
                yield name, module

    def prepare_step(self, modules: Iterable[tuple[str, LowPrecisionModule]], *, seed: int, step: int) -> None:
        """See `Method.prepare_step`. All modules of a device share the tensor of the step."""
        assert step < 1 << STEP_BITS, f"step {step}: draws are not numbered for so many"
        shared: dict[torch.device, Tensor] = {}
        for name, module in modules:
            assert isinstance(module, NoisyLinear | NoisyEmbedding)
            device = module.weight.device
            if not hasattr(module, "key"):
                key = noise_key(seed, f"{name}.weight")
                # int64 is the only type of 64 bits that all of torch's operations know.
                module.key = torch.tensor(key - (1 << 64) if key >= 1 << 63 else key, device=device)
                module.step = shared.setdefault(device, torch.zeros((), dtype=torch.int64, device=device))
            if shared.setdefault(device, module.step) is module.step:
                module.step.fill_(step)

    def owns(self, parameter: str) -> bool:
        """See `Method.owns`."""
        return parameter.endswith(f".{BITS}")

    def tied(self, embedding: str) -> Collection[str]:
        """See `Method.tied`."""
        return () if embedding in self.outer else [f"{embedding}.{BITS}"]

    def weight_of(self, parameter: str) -> str:
        """See `Method.weight_of`."""
        return f"{parameter.removesuffix(BITS)}weight"

    def treatment(self, parameter: str, weight_lr_scale: float) -> Treatment:
        """See `Method.treatment`. The paper's parameter is (b - b_target) / (b_init - b_target), which begins at one. To AdamW
        the unit of a parameter is a factor of its learning rate, so bit widths themselves can be the parameter."""
        b_target, b_init = self.noise.b_target, self.noise.b_init
        rate = self.bits_learning_rate * (b_init - b_target)
        return Treatment(rate, BITS_EPS, penalty=self.penalty, bounds=(b_target, b_init))

    def first_value(self, parameter: str, weight: Tensor) -> Tensor:
        """See `Method.first_value`: every block begins at `b_init`."""
        rows, columns = weight.shape
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return weight.new_full((rows // self.noise.block, columns // self.noise.block), self.noise.b_init, dtype=dtype)

    def bit_widths(self, value: Tensor) -> Tensor:
        """See `Method.bit_widths`."""
        return value
