"""The learning rate as a function of tokens."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from schedulers.decay import ShapeName, WarmupName
from train.config.sections.types import STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WarmupConfig:
    """The keys of every schedule."""

    peak: Annotated[float, Field(gt=0)]
    """the largest learning rate"""
    warmup_tokens: Annotated[int, Field(ge=0)]
    """tokens of warmup; auto: a hundredth of the run, at least 80,000, at most a sixteenth of the run"""
    warmup_shape: WarmupName
    """shape of the rise"""
    warmup_start: Annotated[float, Field(ge=0, le=1)]
    """rate at the start, as a share of the rate at the end of the warmup"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConstantScheduleConfig(WarmupConfig):
    """Warmup, then constant."""

    name: Literal["constant"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CosineScheduleConfig(WarmupConfig):
    """Warmup, then a cosine over the rest of the run."""

    name: Literal["cosine"]
    """which schedule"""
    floor: NonNegativeFloat
    """learning rate at the last step"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DecayConfig(WarmupConfig):
    """The keys of schedules that end in a decay."""

    floor: NonNegativeFloat
    """learning rate at the end of a decay"""
    decay_fraction: Annotated[float, Field(ge=0, le=1)]
    """share of all tokens (wsd_s: of each period), at the end, over which the rate decays"""
    decay_shape: ShapeName
    """shape of the fall"""
    decay_residue: Annotated[float, Field(gt=0, lt=1)]
    """exponential and inverse_proportional never reach zero: if floor is lower than this share of the rate where the decay
    begins, they fall to this share, and are shifted and scaled to end at floor"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WsdScheduleConfig(DecayConfig):
    """Warmup, constant, decay."""

    name: Literal["wsd"]
    """which schedule"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PowerScheduleConfig(DecayConfig):
    """Warmup, then min(peak, batch_tokens / 4096 * a * tokens^b), then decay from the rate reached."""

    name: Literal["power"]
    """which schedule"""
    a: Annotated[float, Field(gt=0)]
    """factor of the power law"""
    b: Annotated[float, Field(lt=0)]
    """exponent of the power law"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WsdSScheduleConfig(DecayConfig):
    """Warmup, then several periods, each constant at the peak with a decay at its end."""

    name: Literal["wsd_s"]
    """which schedule"""
    ends: list[PositiveInt] | None
    """tokens at which the decays end, in whole steps (the run's end is added); null: a quarter, half and all of the run"""


Schedule = Annotated[
    ConstantScheduleConfig | CosineScheduleConfig | WsdScheduleConfig | PowerScheduleConfig | WsdSScheduleConfig,
    Field(discriminator="name"),
]
