"""Layouts, what torchrun tells a process, and the arithmetic of a shape."""

import os

import pytest

from parallel.environment import ProcessEnvironment
from parallel.layout import Layout
from parallel.shape import ModelShape
from train.model.architecture import Architecture, Multipliers, Rope

MULTIPLIERS = Multipliers(embedding=1.0, residual=1.0, attention=1.0, logit=1.0)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_RESTART_COUNT")


@pytest.fixture
def environment(monkeypatch):
    """Reads the environment with these variables set and none other of torchrun's."""

    def read(**variables: object) -> ProcessEnvironment:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        return ProcessEnvironment.read()

    return read


def test_sizes_of_a_layout():
    layout = Layout(replicate=2, shard=3, tensor=5, pipeline=7, context=11)
    assert layout.world_size == 2 * 3 * 5 * 7 * 11
    assert layout.data_parallel == 6
    assert str(layout) == "replicate 2 x shard 3 x tensor 5 x pipeline 7 x context 11"
    assert str(Layout(shard=2)) == "shard 2"
    assert Layout().world_size == 1
    assert str(Layout()) == "single process"


def test_a_plain_start_is_rank_0_of_1(environment):
    assert environment() == ProcessEnvironment(
        rank=0, world_size=1, local_rank=0, local_world_size=1, restart=0, launched=False
    )


def test_what_torchrun_sets_is_read(environment):
    read = environment(RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    assert read == ProcessEnvironment(rank=5, world_size=8, local_rank=1, local_world_size=4, restart=0, launched=True)


def test_processes_share_the_cores_unless_the_user_has_said_otherwise(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10)))
    torchrun = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4}
    assert environment().threads == 10
    assert environment(**torchrun).threads == 2
    assert environment(**torchrun, OMP_NUM_THREADS=1).threads == 2  # torchrun's own, no choice of the user's
    assert environment(**torchrun, OMP_NUM_THREADS=3).threads is None
    assert environment(OMP_NUM_THREADS=1).threads is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert environment(**torchrun).threads == 1


@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("qk_norm, qkv_bias", [(False, False), (True, False), (False, True)])
def test_parameters_are_those_of_the_model(ffn, tie_embeddings, qk_norm, qkv_bias):
    import torch

    from train.model.decoder import Decoder

    shape = ModelShape(
        num_layers=3,
        hidden_size=20,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        ffn_size=17,
        vocab_size=31,
        ffn=ffn,
        tie_embeddings=tie_embeddings,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
    )
    with torch.device("meta"):
        architecture = Architecture(shape=shape, rope=Rope(theta=1e4), norm_eps=1e-5, multipliers=MULTIPLIERS)
        model = Decoder(architecture, layers=range(shape.num_layers), first=True, last=True)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    tables = [parameter for parameter in model.parameters() if shape.vocab_size in parameter.shape]
    assert shape.parameters_non_embedding == shape.parameters - sum(table.numel() for table in tables)
    assert shape.parameters_embedding == 31 * 20


def test_flops_of_a_known_model():
    """GPT-3 175B, 96 x 12288 with 96 heads of 128: 6 N alone is 1.05e12, attention over 2048 adds 12 x 96 x 12288 x 2048."""
    shape = ModelShape(
        num_layers=96,
        hidden_size=12288,
        num_heads=96,
        num_kv_heads=96,
        head_dim=128,
        ffn_size=4 * 12288,
        vocab_size=50257,
        ffn="gelu",
        tie_embeddings=True,
        qk_norm=False,
    )
    assert shape.parameters == pytest.approx(174.6e9, rel=2e-3)
    attention = 12 * 96 * 12288 * 2048
    assert shape.flops_per_token(2048) == 6 * shape.parameters + attention
    assert shape.flops_per_token(2048, causal=True) == 6 * shape.parameters + attention / 2
    untied = ModelShape(**{**vars(shape), "tie_embeddings": False})
    assert untied.flops_per_token(2048) == shape.flops_per_token(2048)
