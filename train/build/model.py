"""The decoder of a configuration."""

import torch

from parallel.stages import Stage
from train.config.resolve.architecture import architecture_of
from train.config.sections.model import ModelConfig
from train.model.decoder import Decoder

PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""Precision -> dtype of the parameters and of the optimizer's moments."""
COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
"""Precision -> dtype of the activations, to which weights are cast before they are used."""


def build_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, stage: Stage | None = None, *, z_loss: float = 0.0
) -> Decoder:
    """The decoder, or a stage of it, on `device`, with default values. On the meta device it takes no memory."""
    stage = stage or Stage(0, range(config.num_layers), first=True, last=True)
    with device:
        architecture = architecture_of(config)
        return Decoder(architecture, layers=stage.layers, first=stage.first, last=stage.last, z_loss=z_loss).to(dtype)
