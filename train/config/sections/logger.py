"""The mirrors of a run's record."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from train.config.sections.types import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoggerConfig:
    """Mirrors of the record, in processes of their own: logger=wandb, logger=tensorboard, logger=[wandb,tensorboard]. They get
    every line once no restart can undo it, that is with the next checkpoint."""

    wandb: bool
    """write the record for Weights & Biases into the run's folder mirrors/wandb"""
    tensorboard: bool
    """write the record for TensorBoard into the run's folder mirrors/tensorboard"""
    wandb_mode: Literal["offline", "online"]
    """offline: into files, to be sent by `wandb sync` later; online: send as well"""
    wandb_project: Annotated[str, Field(min_length=1)]
    """project at Weights & Biases"""

    @property
    def mirrors(self) -> list[str]:
        """The mirrors that are on, by name."""
        return [name for name in ("wandb", "tensorboard") if getattr(self, name)]
