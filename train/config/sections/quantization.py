"""Low-precision weights."""

from typing import Annotated, Any, Literal, Protocol

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
class QatConfig:
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
    start: Annotated[float | Literal["auto"], BeforeValidator(_start)]
    """share of the run's tokens before the weights are quantized; auto: 1 - f* of the compute-optimal QAT paper"""
    fuse_decay: bool
    """true: the learning rate decays once, while the weights are quantized; false: the schedule decays in full precision, then
    the rate rises and decays again"""
    rewarm_fraction: Annotated[float, Field(ge=0, lt=1)]
    """without fuse_decay: share of the quantized tokens over which the rate rises again; over the rest it decays"""
    rewarm_peak: Annotated[float, Field(gt=0)] | None
    """without fuse_decay: the rate that it rises to; null: schedule.peak"""
    scale_floor: Annotated[float, Field(gt=0)]
    """smallest scale: a smaller one is replaced by it"""
    scale_learning_rate: Annotated[float, Field(gt=0)]
    """learning rate of the scales, in units of the weights' rate / the largest level: at 1 a step moves no quantized value
    further through its scale than through its weight"""


Quant = Annotated[NoQuantConfig | QatConfig, Field(discriminator="name")]

QUANTIZER_KEYS = ("bits", "group", "embedding_bits", "activation_bits", "scale_floor")
"""The keys of QAT that determine the value of a quantized weight. The others determine when and how it is learned."""


class LowPrecision(Protocol):
    """The common keys of every low-precision method: its width and the phase of the run that it applies to."""

    @property
    def name(self) -> str:
        """The method."""
        ...

    @property
    def bits(self) -> float:
        """The width of the weights, for the record and the laws."""
        ...

    @property
    def start(self) -> float | Literal["auto"]:
        """Share of the run's tokens before the phase."""
        ...

    @property
    def fuse_decay(self) -> bool:
        """Whether the learning rate decays once, within the phase."""
        ...

    @property
    def rewarm_fraction(self) -> float:
        """Without `fuse_decay`: share of the phase over which the rate rises again."""
        ...

    @property
    def rewarm_peak(self) -> float | None:
        """Without `fuse_decay`: the rate that it rises to again; None: the schedule's peak."""
        ...
