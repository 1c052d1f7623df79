"""The decoder against independent computations in float64."""

import math
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parallel.attention import kernels
from parallel.shape import ModelShape
from train.build.model import build_model
from train.config import load_config
from train.model.initialize import fill, init_std

SMALL = ["model.num_layers=2", "model.hidden_size=24", "model.num_heads=4", "model.ffn_size=40", "model.vocab_size=61"]


def make(*overrides: str, std: float = 0.3):
    config = load_config([*SMALL, "tokenizer=bytes", *overrides]).model
    model = build_model(config, torch.float64, torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill(parameter, (0,) * parameter.dim(), parameter.shape, name=name, seed=3, std=std)
    return config, model


def by_hand(config, model, tokens: list[int]) -> torch.Tensor:
    """Logits (S, V) of one document, position by position and head by head, from the formulas of the papers."""
    weights = dict(model.named_parameters())
    group = config.num_heads // config.num_kv_heads

    def norm(x, name):
        return x / math.sqrt(float(x.square().mean()) + config.norm_eps) * weights[name]

    def rope(x, position):
        half = config.head_dim // 2
        turned = x.clone()
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / config.head_dim)
            turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
            turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
        return turned

    mup = config.embedding_multiplier != 1  # else the plain decoder, by its own formulas
    scale = config.attention_multiplier if mup else 1 / math.sqrt(config.head_dim)
    into = config.residual_multiplier if mup else 1
    hidden = [weights["embedding.weight"][token] * config.embedding_multiplier for token in tokens]
    for layer in range(config.num_layers):
        at = f"blocks.{layer}."
        normed = [norm(x, at + "attention_norm.weight") for x in hidden]

        def heads(kind, position, at=at, normed=normed):
            flat = weights[f"{at}attention.{kind}.weight"] @ normed[position]
            split = list(flat.split(config.head_dim))
            if kind != "value":
                if config.qk_norm:
                    split = [norm(x, f"{at}attention.{kind}_norm.weight") for x in split]
                split = [rope(x, position) for x in split]
            return split

        keys = [heads("key", s) for s in range(len(tokens))]
        values = [heads("value", s) for s in range(len(tokens))]
        for position in range(len(tokens)):
            mixed = []
            for head, query in enumerate(heads("query", position)):
                past = range(position + 1)
                scores = torch.stack([query @ keys[s][head // group] * scale for s in past])
                mixed.append(sum(p * values[s][head // group] for p, s in zip(scores.softmax(0), past, strict=True)))
            hidden[position] = hidden[position] + into * weights[at + "attention.output.weight"] @ torch.cat(mixed)
        for position in range(len(tokens)):
            x = norm(hidden[position], at + "ffn_norm.weight")
            up = weights[at + "ffn.up.weight"] @ x
            if config.ffn == "swiglu":
                gate = weights[at + "ffn.gate.weight"] @ x
                inner = gate / (1 + torch.exp(-gate)) * up
            else:
                inner = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
            hidden[position] = hidden[position] + into * weights[at + "ffn.down.weight"] @ inner
    head = weights["embedding.weight" if config.tie_embeddings else "head.weight"]
    return torch.stack([head @ norm(x, "norm.weight") for x in hidden]) * (config.logit_multiplier if mup else 1)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.num_kv_heads=2"],
        ["model.num_kv_heads=1", "model.qk_norm=false", "model.head_dim=10"],
        ["model.ffn=gelu", "model.tie_embeddings=true", "model.rope_theta=100"],
        ["optimizer.mup=true", "optimizer.mup_base_width=10", "model.qk_norm=false"],
        ["optimizer.mup=true", "model.tie_embeddings=true", "model.attention_multiplier=0.7", "model.logit_multiplier=3"],
    ],
    ids=["default", "grouped", "one_kv_head", "gelu_tied", "mup", "multipliers"],
)
@torch.no_grad()
def test_packed_logits_equal_the_formulas_document_by_document(overrides):
    config, model = make(*overrides)
    documents = [[5, 9, 1, 44], [7], [60, 0, 3, 3, 12]]
    packed = torch.tensor([sum(documents, [])])
    ids = torch.tensor([[number for number, document in enumerate(documents) for _ in document]])
    expected = torch.cat([by_hand(config, model, document) for document in documents])
    torch.testing.assert_close(model(packed, ids)[0], expected, rtol=1e-10, atol=1e-10)


def test_parameter_names_and_counts():
    for overrides in ([], ["model.num_kv_heads=2", "model.tie_embeddings=true"], ["model.ffn=gelu", "model.qk_norm=false"]):
        config, model = make(*overrides)
        counted = sum(parameter.numel() for parameter in model.parameters())
        tables = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[0] in ("embedding", "head"))
        assert config.shape.parameters == counted
        assert config.shape.parameters_non_embedding == counted - tables


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_equal_torch_s_counter(tied):
    config, model = make(f"model.tie_embeddings={tied}", "model.num_kv_heads=2", "model.head_dim=8")
    sequence, rows = 16, 3
    tokens = torch.randint(0, 61, (rows, sequence))
    # The plain formula, because the counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, mock.patch.object(kernels, "_chosen", "plain"):
        model(tokens, torch.zeros_like(tokens)).sum().backward()
    # Its backward pass computes the scores again, which does not count.
    scores = 2 * config.num_layers * config.num_heads * config.head_dim * sequence
    per_token = counter.get_total_flops() / (rows * sequence) - scores
    # The counter sees matrix products only: 6 N counts the norms' parameters too.
    norms = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 1)
    assert config.shape.flops_per_token(sequence) == pytest.approx(per_token + 6 * norms, rel=0.02)
    attention = 12 * config.num_layers * config.num_heads * config.head_dim * sequence
    halved = config.shape.flops_per_token(sequence) - config.shape.flops_per_token(sequence, causal=True)
    assert halved == attention / 2


def test_a_known_model_s_size():
    """Llama 3 8B: 8.03 B parameters (Meta's model card; arXiv 2407.21783, table 3)."""
    shape = ModelShape(
        num_layers=32, hidden_size=4096, num_heads=32, num_kv_heads=8, head_dim=128, ffn_size=14336, vocab_size=128256,
        ffn="swiglu", tie_embeddings=False, qk_norm=False,
    )  # fmt: skip
    assert shape.parameters == 8_030_261_248


def test_which_parameters_start_how():
    for mup_width in (None, 4.0):
        assert init_std("blocks.3.attention_norm.weight", 8, 0.02, mup_width) is None
        assert init_std("norm.weight", 8, 0.02, mup_width) is None
        assert init_std("blocks.0.attention.query_norm.weight", 8, 0.02, mup_width) is None
        assert init_std("embedding.weight", 8, 0.02, mup_width) == 0.02
        assert init_std("head.weight", 8, 0.02, mup_width) == 0.02
    assert init_std("blocks.3.attention.query.weight", 8, 0.02, None) == 0.02
    for name in ("ffn.down", "attention.output"):
        assert init_std(f"blocks.3.{name}.weight", 8, 0.02, None) == pytest.approx(0.02 / 4)
    for name in ("ffn.down", "attention.output", "attention.query", "ffn.up"):  # muP: the width alone
        assert init_std(f"blocks.3.{name}.weight", 8, 0.02, 4.0) == pytest.approx(0.02 / 2)
