"""Weights in other frameworks' files: read where they say what they are, refused where they do not, or hold code."""

import argparse
import json
import os

import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from parallel.engine.foreign import read
from tests.support import console
from tests.support.megatron_shape import SHAPE
from train.model.architecture import Architecture, Multipliers, Rope
from train.model.huggingface import places, problems

ARGUMENTS = {
    "tensor_model_parallel_size": 2,
    "pipeline_model_parallel_size": 2,
    "num_layers": 2,
    "hidden_size": 6,
    "num_attention_heads": 8,
    "group_query_attention": True,
    "num_query_groups": 4,
    "kv_channels": 3,
    "ffn_hidden_size": 10,
    "padded_vocab_size": 12,
    "swiglu": True,
    "untie_embeddings_and_output_weights": True,
    "qk_layernorm": True,
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "num_experts": None,
    "rotary_percent": 1.0,
    "norm_epsilon": 1e-5,
    "rotary_base": 10_000,
    "seq_length": 32,
}


def _weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(place.shape, generator=draw) for name, place in places(SHAPE).items()}


def _rank_of_megatron(ours: dict[str, torch.Tensor], tensor: int, stage: int) -> dict[str, torch.Tensor]:
    """What Megatron-LM's rank writes, split and fused here by the formulas of its documentation."""

    def columns(name: str) -> torch.Tensor:
        return ours[name].chunk(2)[tensor]

    block, theirs = f"blocks.{stage}", "decoder.layers.0"  # layers count from the stage's first
    query, key, value = (columns(f"{block}.attention.{part}.weight") for part in ("query", "key", "value"))
    groups = [torch.cat((query[6 * g : 6 * g + 6], key[3 * g : 3 * g + 3], value[3 * g : 3 * g + 3])) for g in range(2)]
    found = {
        f"{theirs}.self_attention.linear_qkv.layer_norm_weight": ours[f"{block}.attention_norm.weight"],
        f"{theirs}.self_attention.linear_qkv.weight": torch.cat(groups),
        f"{theirs}.self_attention.linear_qkv._extra_state": None,
        f"{theirs}.self_attention.q_layernorm.weight": ours[f"{block}.attention.query_norm.weight"],
        f"{theirs}.self_attention.k_layernorm.weight": ours[f"{block}.attention.key_norm.weight"],
        f"{theirs}.self_attention.linear_proj.weight": ours[f"{block}.attention.output.weight"].chunk(2, dim=1)[tensor],
        f"{theirs}.mlp.linear_fc1.layer_norm_weight": ours[f"{block}.ffn_norm.weight"],
        f"{theirs}.mlp.linear_fc1.weight": torch.cat((columns(f"{block}.ffn.gate.weight"), columns(f"{block}.ffn.up.weight"))),
        f"{theirs}.mlp.linear_fc2.weight": ours[f"{block}.ffn.down.weight"].chunk(2, dim=1)[tensor],
    }
    if stage == 0:
        return {"embedding.word_embeddings.weight": columns("embedding.weight"), **found}
    return {**found, "decoder.final_layernorm.weight": ours["norm.weight"], "output_layer.weight": columns("head.weight")}


def _write_megatron(folder, ours, **changes) -> None:
    arguments = argparse.Namespace(**{**ARGUMENTS, **changes})
    (folder / "latest_checkpointed_iteration.txt").write_text("50")
    for tensor in range(2):
        for stage in range(2):
            place = folder / "iter_0000050" / f"mp_rank_{tensor:02d}_{stage:03d}"
            place.mkdir(parents=True)
            model = _rank_of_megatron(ours, tensor, stage)
            torch.save({"args": arguments, "iteration": 50, "model": model}, place / "model_optim_rng.pt")


def test_megatron_lm_of_four_ranks_is_our_model_bit_for_bit(tmp_path):
    ours = _weights()
    _write_megatron(tmp_path, ours)
    found = read(tmp_path)
    assert found.shape == SHAPE
    assert set(found.tensors) == set(ours)
    assert all(torch.equal(found.tensors[name], value) for name, value in ours.items())
    assert (found.norm_eps, found.rope_theta) == (1e-5, 10_000)


def test_a_converted_checkpoint_is_what_a_run_starts_from(tmp_path):
    ours = _weights()
    _write_megatron(tmp_path, ours)
    out = tmp_path / "out"
    assert console.warm("convert", str(tmp_path), "--out", str(out)).code == 0
    multipliers = Multipliers(embedding=1.0, residual=1.0, attention=3**-0.5, logit=1.0)
    architecture = Architecture(shape=SHAPE, rope=Rope(theta=10_000.0), norm_eps=1e-5, multipliers=multipliers)
    assert list(problems(out, architecture)) == []  # what `model.initial_weights` asks of a folder
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[place.name], ours[name]) for name, place in places(SHAPE).items())
    again = console.warm("convert", str(tmp_path), "--out", str(out))
    again.assert_refused("exists and is not an empty folder")


def test_deepspeed_needs_a_configuration_beside_its_files(tmp_path):
    (tmp_path / "latest").write_text("global_step3")
    (tmp_path / "global_step3").mkdir()
    file = tmp_path / "global_step3" / "mp_rank_00_model_states.pt"
    weights = {"model.norm.weight": torch.ones(4)}
    torch.save({"module": weights, "ds_version": "0.19.8", "param_shapes": [{"model.norm.weight": (4,)}]}, file)
    assert torch.equal(read(tmp_path).tensors["model.norm.weight"], torch.ones(4))
    console.warm("convert", str(tmp_path), "--out", str(tmp_path / "out")).assert_refused("put the model's config.json")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert console.warm("convert", str(tmp_path), "--out", str(tmp_path / "out")).code == 0
    torch.save({"module": {"a": torch.ones(0)}, "ds_version": "0.19.8", "param_shapes": [{"a": (4,)}]}, file)
    with pytest.raises(UserError, match="stage 3, which leaves the weights in pieces"):
        read(tmp_path)


class _Code:
    def __reduce__(self):
        return os.system, ("true",)


def test_what_could_run_code_or_says_too_little_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint of Megatron-LM"):
        read(tmp_path)
    _write_megatron(tmp_path, _weights(), normalization="LayerNorm")
    with pytest.raises(UserError, match="another kind of decoder: normalization=LayerNorm"):
        read(tmp_path)
    file = tmp_path / "iter_0000050" / "mp_rank_00_000" / "model_optim_rng.pt"
    torch.save({"args": _Code(), "model": {}}, file)
    with pytest.raises(UserError, match="is not read, because that could run code"):
        read(tmp_path)
    torch.save({"model": {}}, file)
    with pytest.raises(UserError, match="does not say what it is"):
        read(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("../../etc")
    with pytest.raises(UserError, match="does not name a checkpoint"):
        read(tmp_path)
