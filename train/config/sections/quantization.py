"""Low-precision weights."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from common.bits import BITS
from train.config.sections.types import STRICT


def _bits(value: Any) -> Any:
    if not isinstance(value, int | float) or isinstance(value, bool) or float(value) not in BITS:
        raise ValueError(f"there are quantizers for {', '.join(f'{bits:g}' for bits in BITS)} bits")
    return float(value)


def _group(value: Any) -> Any:
    if value != "row" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError("type row, or how many columns share a scale, such as 64")
    return value


def _start(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (number and 0 <= value < 1):
        raise ValueError("type auto, or the share of the tokens before quantization, from 0 to below 1")
    return float(value) if number else value


Bits = Annotated[float, BeforeValidator(_bits)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoQuantConfig:
    """Full precision."""

    name: Literal["none"]
    """which kind of low-precision weights"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LowPrecisionConfig:
    """The keys of every method: when its phase begins, and what the learning rate does then."""

    start: Annotated[float | Literal["auto"], BeforeValidator(_start)]
    """share of the run's tokens before the phase; auto, for qat alone: 1 - f* of the compute-optimal QAT paper"""
    fuse_decay: bool
    """true: the learning rate decays once, within the phase; false: the schedule decays in full precision, then the rate rises
    and decays again"""
    rewarm_fraction: Annotated[float, Field(ge=0, lt=1)]
    """without fuse_decay: share of the phase over which the rate rises again; over the rest it decays"""
    rewarm_peak: Annotated[float, Field(gt=0)] | None
    """without fuse_decay: the rate that it rises to; null: schedule.peak"""

    @property
    def stored_bits(self) -> float | None:
        """The width of the weights that the run ends with, for the record and the laws; None: they are in full precision."""
        return None

    @property
    def state(self) -> str:
        """What the weights are in the phase, in words."""
        return "quantized"

    @property
    def label(self) -> str:
        """The method in the name of a branch."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QatConfig(LowPrecisionConfig):
    """Quantization-aware training: full precision first, then quantized weights with learned scales."""

    name: Literal["qat"]
    """which kind of low-precision weights"""
    bits: Bits
    """width of the weights: 1, 1.58 (ternary), 2, 3, 4, 6 or 8"""
    group: Annotated[int | Literal["row"], BeforeValidator(_group)]
    """weights that share a scale: row, or this many columns of a row"""
    embedding_bits: Bits
    """least width of the embedding and the head"""
    activation_bits: Literal[8] | None
    """8: round the inputs of the blocks' linear layers to 8 bits, one scale per token; null: do not round them"""
    scale_floor: Annotated[float, Field(gt=0)]
    """smallest scale: a smaller one is replaced by it"""
    scale_learning_rate: Annotated[float, Field(gt=0)]
    """learning rate of the scales, in units of the weights' rate / the largest level: at 1 a step moves no quantized value
    further through its scale than through its weight"""

    @property
    def stored_bits(self) -> float:
        """See `LowPrecisionConfig.stored_bits`."""
        return self.bits

    @property
    def label(self) -> str:
        """See `LowPrecisionConfig.label`."""
        return f"qat{self.bits:g}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NoiseConfig(LowPrecisionConfig):
    """What the methods share that add noise to the weights."""

    name: str
    """which kind of low-precision weights"""
    b_init: Annotated[float, Field(ge=1, le=16)]
    """bit width of every block at first: the noise is max |weight of the block| x 2^(1 - b) times a random number"""
    b_target: Annotated[float, Field(ge=1, le=16)]
    """bit width that the penalty pulls to; widths stay between b_target and b_init"""
    block: Literal[4, 8, 16, 32, 64, 128]
    """side of the square blocks of weights that share a bit width"""
    penalty: Annotated[float, Field(ge=0)]
    """weight, in the objective, of each matrix's mean |b - b_target|"""
    bits_learning_rate: Annotated[float, Field(ge=0)]
    """learning rate of (b - b_target) / (b_init - b_target), in units of the weights' rate; 0: widths stay at b_init"""
    outer: bool
    """true: noise on the embedding and the head too"""

    @property
    def state(self) -> str:
        """See `LowPrecisionConfig.state`."""
        return "with noise"

    @property
    def label(self) -> str:
        """See `LowPrecisionConfig.label`."""
        return f"{self.name}{self.b_target:g}"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GaussianConfig(NoiseConfig):
    """Gaussian weight sampling: in training weights have noise of the size of a rounding step, with learned bit widths."""

    name: Literal["gaussian"]
    """which kind of low-precision weights"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffqConfig(NoiseConfig):
    """The same with the uniform noise of DiffQ."""

    name: Literal["diffq"]
    """which kind of low-precision weights"""


Quant = Annotated[NoQuantConfig | QatConfig | GaussianConfig | DiffqConfig, Field(discriminator="name")]

ROUNDING_KEYS = ("bits", "group", "embedding_bits", "activation_bits", "scale_floor")
"""The keys of QAT that determine the value of a quantized weight. The others determine when and how it is learned."""

QUANTIZER_KEYS = ("name", *ROUNDING_KEYS, "b_init", "b_target", "block", "outer")
"""The keys of all methods that determine what their parameters mean. A branch of a run in its phase must not change them."""
