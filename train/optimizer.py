"""The optimizer: which parameters decay, and with what."""

from collections.abc import Iterable

import torch
from torch import nn

from train.config import AdamWConfig


def build_optimizer(config: AdamWConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
    """Fused AdamW in two groups: matrices decay; norms (vectors) and the embedding table do not.

    The learning rate is set by the engine before every step.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        (plain if parameter.dim() < 2 or name.startswith("embedding.") else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=0.0,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
