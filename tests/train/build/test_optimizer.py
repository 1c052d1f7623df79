"""Which parameter is in which group of the optimizer."""

import torch

from quant.learned_scales import SCALE_EPS
from train.build.model import build_model
from train.build.optimizer import build_optimizer
from train.build.quantization import learned_scales
from train.config import load_config
from train.config.sections.quantization import QatConfig


def test_scales_learn_slower_the_more_levels_they_multiply_and_never_decay():
    config = load_config(["quant=qat", "quant.bits=2", "optimizer.mup=true", "optimizer.mup_base_width=32"])
    assert isinstance(config.quant, QatConfig)
    model = build_model(config.model, torch.float32, torch.device("meta"))
    learned_scales(config.quant).convert(model)
    named = dict(model.named_parameters())
    groups = build_optimizer(config, named.items()).param_groups
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(named)
    for name, parameter in named.items():
        group = of[id(parameter)]
        inner = name.startswith("blocks")
        if name.endswith("scale"):
            rate = 32 / 128 if inner else 1 / 7  # 2 bits: the largest level is 1; embedding and head have 4 bits
            assert (group["weight_decay"], group["eps"], group["lr_scale"]) == (0.0, SCALE_EPS, rate)
        else:
            assert group["eps"] == config.optimizer.eps
