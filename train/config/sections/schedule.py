"""The learning rate as a function of tokens."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from schedulers.decay import ShapeName, WarmupName
from train.config.sections.types import STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupConfig:
    """What every schedule has."""

    peak: Annotated[float, Field(gt=0)]
    """the largest learning rate"""
    warmup_tokens: Annotated[int, Field(ge=0)]
    """tokens of warmup"""
    warmup_shape: WarmupName
    """how it rises"""
    warmup_start: Annotated[float, Field(ge=0, le=1)]
    """where it starts, as a share of the rate it rises to"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConstantScheduleConfig(WarmupConfig):
    """Warmup, then constant."""

    name: Literal["constant"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CosineScheduleConfig(WarmupConfig):
    """Warmup, then a cosine over all the rest."""

    name: Literal["cosine"]
    """which schedule"""
    floor: NonNegativeFloat
    """learning rate at the last step"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecayConfig(WarmupConfig):
    """What the schedules have whose decay stands at the end."""

    floor: NonNegativeFloat
    """learning rate at the end of a decay"""
    decay_fraction: Annotated[float, Field(ge=0, le=1)]
    """share of all tokens (wsd_s: of each period) spent decaying, at the end"""
    decay_shape: ShapeName
    """how it falls"""
    decay_residue: Annotated[float, Field(gt=0, lt=1)]
    """exponential and inverse_proportional never reach zero: with a floor lower than this share of the rate where the decay
    begins, they are followed down to this share, which is taken off evenly"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WsdScheduleConfig(DecayConfig):
    """Warmup, a stable stretch, decay."""

    name: Literal["wsd"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PowerScheduleConfig(DecayConfig):
    """Warmup, then min(peak, batch_tokens / 4096 * a * tokens^b), decay from where that stands."""

    name: Literal["power"]
    """which schedule"""
    a: Annotated[float, Field(gt=0)]
    """factor of the power law"""
    b: Annotated[float, Field(lt=0)]
    """exponent of the power law"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WsdSScheduleConfig(DecayConfig):
    """Several decays on one path, each followed by a jump back to the peak."""

    name: Literal["wsd_s"]
    """which schedule"""
    ends: list[PositiveInt] | None
    """tokens at which the decays end, whole steps (the run's end is added); null: a quarter, half and the whole of the run"""


Schedule = Annotated[
    ConstantScheduleConfig | CosineScheduleConfig | WsdScheduleConfig | PowerScheduleConfig | WsdSScheduleConfig,
    Field(discriminator="name"),
]
