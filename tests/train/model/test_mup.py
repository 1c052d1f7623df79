"""The coordinate check: how large activations are after a few steps, against the width (Yang et al., arXiv 2203.03466, D.1)."""

import math

import pytest
import torch
import torch.nn.functional as F

from train.build.initial_weights import initial_values
from train.build.model import build_model
from train.build.optimizer import build_optimizer
from train.config import load_config

WIDTHS = (32, 64, 128, 256)
STEPS, RATE = 5, 0.02


def scales(width: int, *overrides: str) -> dict[str, float]:
    """Root mean square of what a few steps have changed, at every place in the model: layers, and logits."""
    sizes = [
        f"model.hidden_size={width}",
        f"model.num_heads={width // 16}",
        f"model.ffn_size={2 * width}",
        "model.num_layers=3",
    ]
    config = load_config([*sizes, "model.vocab_size=64", "tokenizer=bytes", "model.qk_norm=false", *overrides])
    model = build_model(config.model, torch.float32, torch.device("cpu"))
    fill = initial_values(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(name, parameter, (0,) * parameter.dim(), tuple(parameter.shape))
    seen: dict[str, torch.Tensor] = {}
    for layer, block in model.blocks.items():
        for place in ("attention", "ffn"):
            key = f"{place} {layer}"
            getattr(block, place).register_forward_hook(lambda *args, key=key: seen.update({key: args[2].detach()}))
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(64, (8, 33), generator=draw)
    inputs, targets, documents = tokens[:, :-1], tokens[:, 1:], torch.zeros(8, 32, dtype=torch.int64)
    optimizer = build_optimizer(config, list(model.named_parameters()))
    for step in range(STEPS + 1):
        logits = model(inputs, documents)
        seen["logits"] = logits.detach()
        if step == 0:
            first = dict(seen)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
    return {place: float((seen[place] - first[place]).square().mean().sqrt()) for place in seen}


def slopes(*overrides: str) -> dict[str, float]:
    """The exponent of the width with which each of them grows, by least squares in logarithms."""
    found = [scales(width, *overrides) for width in WIDTHS]
    x = torch.tensor([math.log(width) for width in WIDTHS])
    x = x - x.mean()
    return {
        place: float((x * torch.tensor([math.log(at[place]) for at in found])).sum() / x.square().sum()) for place in found[0]
    }


def test_under_mup_no_activation_grows_with_the_width():
    found = slopes("optimizer.mup=true", "optimizer.mup_base_width=32", "model.init_std=0.1")
    assert all(abs(slope) < 0.25 for slope in found.values()), found


def test_without_it_they_do():
    found = slopes("optimizer.mup=false")
    assert max(found.values()) > 0.5, found


def test_only_the_matrices_of_the_blocks_learn_more_slowly():
    config = load_config(["model.hidden_size=64", "optimizer.mup=true", "optimizer.mup_base_width=16"])
    model = build_model(config.model, torch.float32, torch.device("cpu"))
    rates = {
        id(p): group["lr_scale"]
        for group in build_optimizer(config, model.named_parameters()).param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.25 if name.startswith("blocks.") and parameter.dim() == 2 else 1.0), name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name):
    config = load_config([f"optimizer={name}"])
    named = dict(build_model(config.model, torch.float32, torch.device("cpu")).named_parameters())
    decay = [
        (p, group["weight_decay"]) for group in build_optimizer(config, named.items()).param_groups for p in group["params"]
    ]
    assert sorted(id(p) for p, _ in decay) == sorted(id(p) for p in named.values())
    decayed = {id(p) for p, weight in decay if weight > 0}
    for parameter_name, parameter in named.items():
        expected = parameter.dim() == 2 and not parameter_name.startswith("embedding.")
        assert (id(parameter) in decayed) == expected, parameter_name


def test_a_muon_step_with_a_gradient_that_is_not_finite_changes_nothing():
    config = load_config(["optimizer=muon"])
    model = build_model(config.model, torch.float32, torch.device("cpu"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
        parameter.grad = torch.ones_like(parameter)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(config, model.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    optimizer.found_inf = torch.zeros(())
    optimizer.step()
    assert not any(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
