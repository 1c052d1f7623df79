"""Shapes of decoders, against the trainer's own count."""

import pytest

from parallel.shape import ModelShape
from scaling.plan.shape import decoder_parameters, shape_for

TINY = {"config": {"model.vocab_size": 257, "model.qk_norm": False, "model.ffn": "gelu"}, "aspect": 16.0}


@pytest.mark.parametrize(
    "parameters, context",
    [(size, TINY) for size in (3e4, 1e6, 3e7, 1.5e8, 1.4e9, 7e9, 7e10)]
    + [(size, {}) for size in (1e6, 3e7, 1.5e8, 1.4e9, 3.4e9, 7e9, 7e10)],
)
def test_shapes_have_the_planned_parameters_and_heads_that_people_build(parameters, context):
    shape = shape_for(parameters, context)
    head_dim, left = divmod(shape["hidden_size"], shape["num_heads"])
    assert left == 0
    assert head_dim % 8 == 0
    assert shape["num_heads"] <= 4 or shape["num_heads"] % 2 == 0
    if shape["hidden_size"] >= 256:
        assert head_dim in (64, 128)
    assert counted(shape, context) == pytest.approx(parameters, rel=0.1)
    assert counted(shape_for(parameters, context, most=parameters), context) <= parameters


def counted(shape, context):
    """By the trainer's own record of a shape."""
    config = context.get("config", {})
    return ModelShape(
        **shape, head_dim=shape["hidden_size"] // shape["num_heads"], vocab_size=config.get("model.vocab_size", 32_768),
        ffn=config.get("model.ffn", "swiglu"), tie_embeddings=False, qk_norm=config.get("model.qk_norm", True),
    ).parameters  # fmt: skip


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
def test_parameters_are_counted_as_the_trainer_counts_them(ffn, qk_norm, tie_embeddings):
    shape = {"num_layers": 3, "hidden_size": 96, "num_heads": 6, "num_kv_heads": 2, "head_dim": 24, "ffn_size": 200,
             "vocab_size": 300, "ffn": ffn, "qk_norm": qk_norm, "tie_embeddings": tie_embeddings}  # fmt: skip
    assert decoder_parameters(**shape) == ModelShape(**shape).parameters


@pytest.mark.parametrize("parameters", [5e7, 1e9, 4e9, 7e10])
def test_far_from_tiny_runs_a_shape_is_what_people_build(parameters):
    """From runs of two layers, width 32 and heads of 16, the plan was 253 layers with 248 heads."""
    tiny = {"config": {"model.vocab_size": 2048}, "aspect": 16.0, "ffn_ratio": 2.0, "head_dim": 16}
    shape = shape_for(parameters, tiny)
    assert 48 <= shape["hidden_size"] / shape["num_layers"] <= 256
    assert shape["hidden_size"] // shape["num_heads"] in (64, 128)
    assert shape["num_layers"] <= 120
    assert shape_for(1e5, tiny)["hidden_size"] // shape_for(1e5, tiny)["num_heads"] == 16
