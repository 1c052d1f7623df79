"""`model.initial_weights`: models that transformers saved, on every layout; folders that do not fit, each with its message."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from tests.support import console, huggingface_models, small_runs, whole_runs
from train.config import load_config, require
from train.config.resolve.architecture import architecture_of
from train.model import huggingface
from train.trained.checkpoint import load_weights

# Name of a shape -> (architecture, settings of transformers, words of ours).
SHAPES = {
    "llama": ("Llama", {}, ["model.qk_norm=false"]),
    "grouped": (
        "Llama",
        {"num_attention_heads": 4, "head_dim": 4, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        ["model.qk_norm=false", "model.num_heads=4", "model.num_kv_heads=2", "model.rope_theta=500"],
    ),
    "tied_wide": (
        "Llama",
        {"tie_word_embeddings": True, "head_dim": 14, "rms_norm_eps": 1e-3},
        ["model.qk_norm=false", "model.tie_embeddings=true", "model.head_dim=14", "model.norm_eps=1e-3"],
    ),
    "qwen": (
        "Qwen3",
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10},
        ["model.num_heads=3", "model.num_kv_heads=1", "model.head_dim=10"],
    ),
    "llama31": (
        "Llama",
        {"max_position_embeddings": 128, "rope_parameters": {
            "rope_theta": 500.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }},
        ["model.qk_norm=false", "model.rope_theta=500", "model.rope_factor=8", "model.rope_original_sequence=64"],
    ),
    "qwen2": (
        "Qwen2",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4},
        ["model.qk_norm=false", "model.qkv_bias=true", "model.num_heads=4", "model.num_kv_heads=2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_that_transformers_saved_has_its_logits_here(tmp_path, shape, shard_size):
    architecture, settings, words = SHAPES[shape]
    theirs = huggingface_models.make_theirs(tmp_path, architecture, shard_size, **settings)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "9KB"
    config = huggingface_models.imported(tmp_path, *words)
    require(config, world_size=1)
    ids = huggingface_models.tokens(310)
    expected = huggingface_models.their_logits(theirs, ids)
    assert expected.abs().max() > 0.5
    assert (huggingface_models.logits(huggingface_models.started(config), ids) - expected).abs().max() < 1e-5


def test_a_model_in_bf16_is_taken_exactly(tmp_path):
    huggingface_models.make_theirs(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in whole.items()}
    save_file(halved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = huggingface_models.imported(tmp_path, "model.qk_norm=false")
    require(config, world_size=1)
    model = huggingface_models.started(config)
    for name, place in huggingface.places(config.model.shape).items():
        assert torch.equal(model.get_parameter(name), halved[place.name].float())


@pytest.mark.parametrize("axes", [["tensor=2"], ["pipeline=2"], ["shard=2"], ["tensor=2", "shard=2"]], ids="_".join)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
def test_every_layout_starts_from_the_same_bits(group, tmp_path, architecture, axes):
    tied = architecture == "Llama"
    huggingface_models.make_theirs(tmp_path, architecture, "9KB", num_hidden_layers=3, tie_word_embeddings=tied)
    norm = f"model.qk_norm={str(not tied).lower()}"
    words = [
        *small_runs.SMALL,
        *small_runs.LENGTH,
        "tokenizer=bytes",
        "train.microbatch=1",
        "model.num_layers=3",
        norm,
        "model.norm_eps=1e-6",
    ]
    overrides = [*words, f"model.initial_weights={tmp_path}", f"model.tie_embeddings={str(tied).lower()}"]
    ((single,),) = group(1).run(whole_runs.initial_weights, [load_config(overrides)])
    config = load_config([*overrides, *(f"parallel.{axis}" for axis in axes)])
    require(config, world_size=config.parallel.layout.world_size)
    assert len(single) == len(huggingface.places(config.model.shape))
    found = group(config.parallel.layout.world_size).run(whole_runs.initial_weights, [config])
    assert all(hashes == [single] for hashes in found)


def test_a_rank_opens_no_file_that_has_nothing_for_it(tmp_path):
    from train.build.initial_weights import stored_values

    huggingface_models.make_theirs(tmp_path, shard_size="9KB")
    config = huggingface_models.imported(tmp_path, "model.qk_norm=false").model
    where = huggingface.tensors(tmp_path)
    fill = stored_values(config, tmp_path)
    kept = where["model.norm.weight"].file
    whole = load_file(kept)["model.norm.weight"]
    for path in tmp_path.glob("*.safetensors"):
        if path != kept:
            path.unlink()
    local = torch.empty(5)
    fill("norm.weight", local, (3,), (16,))
    assert torch.equal(local, whole[3:8])
    nothing = torch.empty(0, 16)
    fill("embedding.weight", nothing, (310, 0), (310, 16))


def test_a_run_starts_from_them_and_is_another_run(tmp_path):
    (tmp_path / "model").mkdir()
    huggingface_models.make_theirs(tmp_path / "model")
    norms = ["model.qk_norm=false", "model.norm_eps=1e-6"]
    run = small_runs.train(tmp_path, "run", *small_runs.COLD, *norms, f"model.initial_weights={tmp_path}/model")
    theirs, ours = load_file(tmp_path / "model" / "model.safetensors"), load_weights(run)
    for name, place in huggingface.places(load_config([*small_runs.SMALL, *norms]).model.shape).items():
        assert torch.equal(ours[name], theirs[place.name])
    answer = console.warm("train", "run.name=run", *small_runs.words(tmp_path, *small_runs.COLD, *norms))
    answer.assert_refused("holds another run", "model.initial_weights")
    # What was trained stays usable when the folder it started from is gone.
    shutil.rmtree(tmp_path / "model")
    assert console.warm("generate", str(run), "--prompt", "a", "--tokens", "1").code == 0
    assert console.warm("export", str(run), "--out", str(tmp_path / "out")).code == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    huggingface_models.make_theirs(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    huggingface_models.make_theirs(folder, shard_size="9KB")
    return folder


def problems(folder, *words: str) -> list[str]:
    return list(
        huggingface.problems(folder, architecture_of(huggingface_models.imported(folder, "model.qk_norm=false", *words).model))
    )


OTHERS = [
    ["model.num_layers=3", "model.ffn_size=32", "model.vocab_size=400"],
    ["model.hidden_size=32"],  # with it head_dim, which follows
    ["model.num_heads=4", "model.head_dim=8"],  # the width of a head is theirs; with it num_kv_heads
    ["model.hidden_size=24", "model.num_heads=3", "model.num_kv_heads=1"],
    ["model.tie_embeddings=true"],
    ["model.ffn=gelu"],
    ["model.rope_theta=20000", "model.norm_eps=1e-5"],
    ["model.qk_norm=true"],
    ["model.qkv_bias=true"],
    ["model.rope_factor=8"],
]


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: words[0])
def test_another_model_is_told_what_differs_and_what_to_type(model, words):
    (said,) = problems(model, *words)
    config = huggingface_models.imported(model, "model.qk_norm=false", *words).model
    for word in words:
        key = word.partition("=")[0].removeprefix("model.")
        value = getattr(config, key)
        assert re.search(rf"\b{key}=\S+, not {re.escape(str(value).lower())}[.,]", said) or word == "model.head_dim=8"
    typed = said.split("Type: ")[1].split()
    assert problems(model, *words, *typed) == []


@pytest.mark.parametrize("settings, word", [({"tie_word_embeddings": True}, "true"), ({"tie_word_embeddings": False}, "false")])
def test_what_is_tied_there_is_tied_here(tmp_path, settings, word):
    huggingface_models.make_theirs(tmp_path, **settings)
    other = "false" if word == "true" else "true"
    (said,) = problems(tmp_path, f"model.tie_embeddings={other}")
    assert said.endswith(f"tie_embeddings={word}, not {other}. Type: model.tie_embeddings={word}")
    assert problems(tmp_path, f"model.tie_embeddings={word}") == []


FOREIGN = {
    "attention_bias": ({"attention_bias": True}, "attention_bias=true"),
    "mlp_bias": ({"mlp_bias": True}, "mlp_bias=true"),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}}, 'rope scaling ("yarn")'),
    "half a llama3": (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
        "has null where model.rope_low_frequency_factor belongs",
    ),
    "old rope": ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope scaling ("linear")'),
    "part": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "layers": ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
    "nested rope": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
        "a rotary embedding for each kind",
    ),
    "activation": ({"hidden_act": "gelu"}, 'hidden_act="gelu"'),
    "window": ({"use_sliding_window": True}, "use_sliding_window=true"),
    "packed": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    "architecture": ({"architectures": ["MistralForCausalLM"]}, 'the architecture "MistralForCausalLM"; Llama'),
    "kind": ({"architectures": None, "model_type": "gemma"}, 'the architecture "gemma"'),
    "words": ({"hidden_size": "16"}, 'hidden_size="16"'),
    "nothing": ({"num_hidden_layers": None}, "num_hidden_layers=null"),
    "truth": ({"vocab_size": True}, "vocab_size=true"),
    "epsilon": ({"rms_norm_eps": "small"}, 'has "small" where model.norm_eps belongs'),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_this_decoder_does_not_compute_is_refused(model, tmp_path, case):
    changes, expected = FOREIGN[case]
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    huggingface_models.edit(tmp_path / "config.json", **changes)
    (said,) = problems(tmp_path)
    assert expected in said


def test_a_config_of_an_older_transformers_is_read(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    gone = {
        "rope_parameters": None,
        "head_dim": None,
        "num_key_value_heads": None,
        "tie_word_embeddings": None,
        "mlp_bias": None,
    }
    huggingface_models.edit(tmp_path / "config.json", **gone, rope_theta=500.0)
    assert problems(tmp_path, "model.rope_theta=500") == []
    huggingface_models.edit(tmp_path / "config.json", rope_theta=None)
    assert problems(tmp_path) == []


def cut(path, content):
    path.write_bytes(content[:-1])


def rewrite(change):
    def apply(path, content):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


DAMAGE = {
    "gone": (lambda path, content: path.unlink(), "neither model.safetensors nor model.safetensors.index.json"),
    "empty": (lambda path, content: path.write_bytes(b""), "not a safetensors file"),
    "text": (lambda path, content: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "not a safetensors file"),
    "list": (lambda path, content: path.write_bytes((2).to_bytes(8, "little") + b"[]"), "not a safetensors file"),
    "cut": (cut, "was not copied whole"),
    "missing": (
        rewrite(lambda tensors: [tensors.pop(name) for name in list(tensors) if "mlp" in name]),
        "lack model.layers.0.mlp.gate_proj.weight, model.layers.0.mlp.up_proj.weight, model.layers.0.mlp.down_proj.weight "
        "and 3 more",
    ),
    "shape": (
        rewrite(lambda tensors: tensors.update({"model.norm.weight": torch.ones(17)})),
        "not of the shape that its config.json gives them: model.norm.weight [17]",
    ),
    "type": (
        rewrite(lambda tensors: tensors.update({"model.norm.weight": torch.ones(16, dtype=torch.int8)})),
        "model.norm.weight (I8)",
    ),
    "extra": (
        rewrite(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})),
        "no place for: model.layers.0.self_attn.q_proj.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_weights_are_refused(model, tmp_path, case):
    damage, expected = DAMAGE[case]
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    damage(path, path.read_bytes())
    (said,) = problems(tmp_path)
    assert expected in said


def test_what_old_llamas_store_beside_their_weights_is_passed_over(model, tmp_path):
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    rewrite(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))(path, b"")
    assert problems(tmp_path) == []


def test_a_missing_shard_and_a_broken_index_are_refused(shards, tmp_path):
    shutil.copytree(shards, tmp_path, dirs_exist_ok=True)
    assert problems(tmp_path) == []
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    content = gone.read_bytes()
    gone.unlink()
    (said,) = problems(tmp_path)
    assert said.startswith(f"cannot read {gone}: No such file or directory")
    gone.write_bytes(content)
    for index in ("{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (tmp_path / huggingface.INDEX).write_text(index)
        (said,) = problems(tmp_path)
        assert huggingface.INDEX in said


@pytest.mark.parametrize("config", ["", "{", "3", "[" * 100_000, "\xff"])
def test_a_config_that_is_none_is_refused(tmp_path, config):
    (tmp_path / "config.json").write_text(config, encoding="latin-1")
    (said,) = problems(tmp_path)
    assert "config.json is not" in said
    assert len(said.splitlines()) == 1


def test_a_missing_folder_or_file_is_refused_by_the_command_in_a_line(model, tmp_path):
    (tmp_path / "text.txt").write_text(small_runs.TEXT)
    words = small_runs.words(tmp_path, *small_runs.COLD, "parallel.shard=2")  # refused before any process is started for it
    hub_name = console.warm("train", *words, "model.initial_weights=meta-llama/Llama-3.2-1B")
    hub_name.assert_refused("model.initial_weights=meta-llama/Llama-3.2-1B", "there is no folder", "download")
    (tmp_path / "empty").mkdir()
    console.warm("train", *words, f"model.initial_weights={tmp_path}/empty").assert_refused("config.json: No such file")
    console.warm("train", *words, f"model.initial_weights={model}").assert_refused("holds another model", "model.qk_norm=false")
    assert not (tmp_path / "runs").exists()


def test_it_is_reported_with_all_other_broken_rules(model):
    config = huggingface_models.imported(model, "model.qk_norm=true", "schedule.floor=1", "train.microbatch=3")
    with pytest.raises(UserError) as caught:
        require(config, world_size=1)
    assert len(str(caught.value).splitlines()) == 3


def test_it_is_part_of_what_makes_a_run(model):
    one, other = load_config([]), load_config([f"model.initial_weights={model}"])
    assert one.identity()["model"]["initial_weights"] is None
    assert one.identity_hash() != other.identity_hash()


def test_a_tilde_is_the_home_folder(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").symlink_to(model)
    config = load_config(
        [*small_runs.SMALL, "tokenizer=bytes", "model.qk_norm=false", "model.norm_eps=1e-6", "model.initial_weights='~/m'"]
    )
    require(config, world_size=1)
    found = huggingface_models.started(config).get_parameter("norm.weight")
    assert torch.equal(found, load_file(model / "model.safetensors")["model.norm.weight"])
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "llama"
