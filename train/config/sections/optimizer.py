"""How a gradient becomes a step."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamConfig:
    """What every optimizer has: AdamW for what it does not treat itself. Norms and embeddings are not decayed."""

    beta1: Annotated[float, Field(ge=0, lt=1)]
    """decay of the first moment"""
    beta2: Annotated[float, Field(ge=0, lt=1)]
    """decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """added to the root of the second moment"""
    weight_decay: NonNegativeFloat
    """decoupled weight decay, times the learning rate"""
    clip_norm: Annotated[float, Field(gt=0)]
    """gradients are scaled down to this l2 norm"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamWConfig(AdamConfig):
    """AdamW."""

    name: Literal["adamw"]
    """which optimizer"""
    mup: bool
    """muP: multipliers, initial weights and learning rates such that one schedule.peak serves every hidden_size"""
    mup_base_width: PositiveInt
    """the hidden_size at which muP's widths count as 1"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MuonConfig(AdamConfig):
    """Muon for the matrices of the blocks, with updates as large as AdamW's; AdamW for the rest."""

    name: Literal["muon"]
    """which optimizer"""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """of the gradients, before they are orthogonalised"""
    nesterov: bool
    """Nesterov's form of that momentum"""
    iterations: PositiveInt
    """Newton-Schulz iterations"""


Optimizer = Annotated[AdamWConfig | MuonConfig, Field(discriminator="name")]
