"""Modules that use their weights quantized, once they are told to."""

import pytest
import torch
from torch import nn

from quant.linear import Precision, QuantEmbedding, QuantLinear, quantizing_modules, swap_modules
from quant.quantizer import LEVELS


def made(kind, rows: int, columns: int, precision: Precision):
    sizes = (columns, rows) if kind is QuantLinear else (rows, columns)
    module = kind(*sizes, precision)
    with torch.no_grad():
        module.scale.copy_(precision.first_scale(module.weight))
    return module


@pytest.mark.parametrize("bits", sorted(LEVELS))
def test_until_it_is_active_it_is_a_linear_to_the_bit(bits):
    module = made(QuantLinear, 12, 16, Precision(bits=bits, activation_bits=8))
    plain = nn.Linear(16, 12, bias=False)
    plain.load_state_dict({"weight": module.weight.detach()})
    hidden = torch.randn(5, 16)
    module(hidden).square().sum().backward()
    plain(hidden).square().sum().backward()
    assert torch.equal(module(hidden), plain(hidden))
    assert torch.equal(module.weight.grad, plain.weight.grad)
    assert module.scale.grad is None
    module.active = True
    assert not torch.equal(module(hidden), plain(hidden))


def test_an_active_linear_multiplies_with_its_quantized_weight():
    module = made(QuantLinear, 12, 16, Precision(bits=2, group=4))
    module.active = True
    hidden = torch.randn(5, 16)
    assert torch.equal(module(hidden), hidden @ module.used_weight().T)
    assert max(len(row.unique()) for row in module.used_weight().view(-1, 4)) <= 4
    module(hidden).sum().backward()
    assert module.scale.grad.shape == (12, 4)


def test_an_active_embedding_looks_up_in_its_quantized_table():
    module = made(QuantEmbedding, 10, 8, Precision(bits=3))
    module.active = True
    ids = torch.tensor([[3, 3, 9]])
    assert torch.equal(module(ids), module.used_weight()[ids])
    module(ids).sum().backward()
    touched = module.scale.grad[:, 0] != 0
    assert set(touched.nonzero().flatten().tolist()) <= {3, 9}


def test_the_swap_keeps_names_and_adds_scales():
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(8, 4, bias=False), nn.LayerNorm(4)), "table": nn.Embedding(6, 8)})
    before = list(dict(model.named_parameters()))
    swap_modules(model, lambda name: Precision(bits=8 if name == "table" else 2, group=4))
    after = dict(model.named_parameters())
    assert set(after) - set(before) == {"a.0.scale", "table.scale"}
    assert [name for name in after if not name.endswith("scale")] == before
    assert (after["a.0.scale"].shape, after["table.scale"].shape) == ((4, 2), (6, 2))
    assert {name: module.precision.bits for name, module in quantizing_modules(model)} == {"a.0": 2, "table": 8}


def test_scales_stay_fp32_under_a_bf16_model():
    assert QuantLinear(8, 4, Precision(bits=4), dtype=torch.bfloat16).scale.dtype == torch.float32
