"""The optimizer."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import STRICT, NonNegativeFloat, PositiveInt


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamConfig:
    """The keys of every optimizer: AdamW, for all parameters or for the rest. Norms and embeddings have no weight decay."""

    beta1: Annotated[float, Field(ge=0, lt=1)]
    """decay of the first moment"""
    beta2: Annotated[float, Field(ge=0, lt=1)]
    """decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """added to the root of the second moment"""
    weight_decay: NonNegativeFloat
    """decoupled weight decay: each step multiplies weights by 1 - learning rate x this"""
    clip_norm: Annotated[float, Field(gt=0)]
    """gradients are scaled down to this l2 norm"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AdamWConfig(AdamConfig):
    """AdamW."""

    name: Literal["adamw"]
    """which optimizer"""
    mup: bool
    """muP: multipliers, initial weights and learning rates for which one schedule.peak suits every hidden_size"""
    mup_base_width: PositiveInt
    """the hidden_size whose width muP counts as 1"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MuonConfig(AdamConfig):
    """Muon for the matrices of the blocks, with updates as large as AdamW's; AdamW for the rest."""

    name: Literal["muon"]
    """which optimizer"""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """momentum of the gradients, before they are orthogonalised"""
    nesterov: bool
    """use Nesterov momentum"""
    iterations: PositiveInt
    """Newton-Schulz iterations"""


Optimizer = Annotated[AdamWConfig | MuonConfig, Field(discriminator="name")]
