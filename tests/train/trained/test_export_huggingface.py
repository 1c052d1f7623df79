"""Export in Hugging Face's format: transformers itself loads it, and computes what we compute."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import UserError
from tests.support import console, huggingface_models, small_runs
from train.config import load_config
from train.config.resolve.architecture import architecture_of
from train.export import main
from train.folder.reading import load_run_config
from train.model.huggingface import describe, places
from train.trained.checkpoint import load_weights
from train.trained.export_huggingface import export_huggingface

# Name of a shape -> (its words, the class that transformers must choose).
SHAPES = {
    "plain": (["model.qk_norm=false"], "LlamaForCausalLM"),
    "grouped": (
        ["model.qk_norm=false", "model.num_heads=4", "model.num_kv_heads=2", "model.rope_theta=500", "model.norm_eps=1e-3"],
        "LlamaForCausalLM",
    ),
    "tied": (["model.qk_norm=false", "model.tie_embeddings=true"], "LlamaForCausalLM"),
    "wide_heads": (["model.qk_norm=false", "model.head_dim=14"], "LlamaForCausalLM"),
    "biases": (["model.qk_norm=false", "model.qkv_bias=true"], "Qwen2ForCausalLM"),
    "longer": (
        ["model.qk_norm=false", "model.rope_theta=500", "model.rope_factor=8", "model.rope_original_sequence=64"],
        "LlamaForCausalLM",
    ),
    "normed": (["model.qk_norm=true"], "Qwen3ForCausalLM"),
    "normed_uneven": (
        ["model.qk_norm=true", "model.num_heads=3", "model.num_kv_heads=1", "model.head_dim=10", "model.tie_embeddings=true"],
        "Qwen3ForCausalLM",
    ),
}
MUP = ["optimizer.mup=true", "optimizer.mup_base_width=16", "model.init_std=0.1"]
SHAPES |= {
    "mup": ([*MUP, "model.qk_norm=false"], "LlamaForCausalLM"),
    "mup_normed_tied": ([*MUP, "model.qk_norm=true", "model.tie_embeddings=true"], "Qwen3ForCausalLM"),
}
SAMPLES = ["", "line 7 of é", "漢字\t\n  two  spaces", "a <|endoftext|> b", "\x00\x7f 👩‍🚀"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def run(place) -> Path:
    return small_runs.train(place, "run", *small_runs.HOT)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_computes_the_same_logits(place, tmp_path, shape):
    from transformers import AutoModelForCausalLM

    overrides, architecture = SHAPES[shape]
    run = small_runs.train(place, shape, *small_runs.HOT, *overrides)
    export_huggingface(run, tmp_path / "out")
    theirs, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == architecture
    assert not any(loading.values()), loading
    assert theirs.dtype == torch.float32
    assert sum(parameter.numel() for parameter in theirs.parameters()) == load_run_config(run).model.shape.parameters
    ids = huggingface_models.tokens(310)
    expected = huggingface_models.logits(small_runs.trained(run), ids)
    assert expected.abs().max() > 0.5
    assert (huggingface_models.their_logits(theirs, ids) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("overrides", [overrides for overrides, _ in SHAPES.values()], ids=list(SHAPES))
def test_every_parameter_has_a_place(overrides):
    from train.build.model import build_model

    config = load_config([*small_runs.SMALL, *overrides]).model
    named = build_model(config, torch.float32, torch.device("meta")).named_parameters()
    expected = {name: tuple(parameter.shape) for name, parameter in named}
    found = places(config.shape)
    assert {name: place.shape for name, place in found.items()} == expected
    assert len({place.name for place in found.values()}) == len(expected)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_weights_keep_their_type_and_every_bit(place, tmp_path, precision):
    from transformers import AutoModelForCausalLM

    run = small_runs.train(place, precision, *small_runs.HOT, f"train.precision={precision}")
    export_huggingface(run, tmp_path / "out")
    ours, theirs = load_weights(run), stored(tmp_path / "out")
    names = places(load_run_config(run).model.shape)
    assert {place.name for place in names.values()} == theirs.keys()
    for name, tensor in ours.items():
        assert theirs[names[name].name].dtype == tensor.dtype
        assert torch.equal(theirs[names[name].name], tensor)
    expected = torch.float64 if precision == "fp64" else torch.float32
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == expected


def test_several_files_with_an_index(run, tmp_path):
    from transformers import AutoModelForCausalLM

    export_huggingface(run, tmp_path / "one")
    export_huggingface(run, tmp_path / "many", shard_bytes=15_000)
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == 4 * load_run_config(run).model.shape.parameters
    # The two tables are larger than a file may be, and alone in theirs.
    assert [len(load_file(tmp_path / "many" / name)) for name in (files[0], files[-1])] == [1, 1]
    one, many = stored(tmp_path / "one"), stored(tmp_path / "many")
    assert one.keys() == many.keys() == index["weight_map"].keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "many")]
    ids = huggingface_models.tokens(310)
    assert torch.equal(*(huggingface_models.their_logits(model, ids) for model in models))


def test_the_tokenizer_says_what_ours_says(run, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    export_huggingface(run, tmp_path / "out")
    ours, theirs = Tokenizer.from_file(str(run / "tokenizer.json")), AutoTokenizer.from_pretrained(tmp_path / "out")
    ours.encode_special_tokens = True
    for text in SAMPLES:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert theirs(text)["input_ids"] == theirs.encode(text) == ids
        assert theirs.decode(ids) == ours.decode(ids, skip_special_tokens=False) == text
    assert theirs.eos_token_id == json.loads((run / "data.json").read_text())["end_of_text"]
    assert theirs.eos_token == "<|endoftext|>"
    assert theirs.model_max_length == 32


def test_a_tokenizer_that_adds_tokens_adds_none(place, tmp_path):
    """Training left them out, so a model has never seen them."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer

    from train.data.tokenizers.bytes import bytes_tokenizer

    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a").ids == [257, 97]
    words = ["tokenizer=file", f"tokenizer.path={tmp_path}/tokenizer.json", "tokenizer.end_of_text='<|endoftext|>'"]
    # `small_runs.train` asks for a tokenizer of 300 entries, which is not a key of this one.
    overrides = [word for word in small_runs.words(place, *small_runs.COLD) if not word.startswith("tokenizer")]
    (place / "text.txt").write_text(small_runs.TEXT)
    assert console.warm("train", "run.name=template", *overrides, *words).code == 0
    export_huggingface(place / "runs" / "template", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"] == [97, 98]


def test_transformers_generates_until_the_text_ends(run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_huggingface(run, tmp_path / "out")
    model, tokenizer = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    made = model.generate(**tokenizer("line 1", return_tensors="pt"), max_new_tokens=8, do_sample=False, pad_token_id=0)
    ours = console.warm("generate", str(run), "--prompt", "line 1", "--tokens", "8", "--temperature", "0")
    assert tokenizer.decode(made[0], skip_special_tokens=True) == ours.out.removesuffix("\n")


def test_the_command_says_what_it_wrote(run, tmp_path):
    answer = console.warm("export", str(run), "--format", "huggingface", "--out", str(tmp_path / "deep" / "out"))
    assert (answer.code, answer.err) == (0, "")
    first, *files = answer.out.splitlines()
    parameters = load_run_config(run).model.shape.parameters
    assert (
        first
        == f"{tmp_path / 'deep' / 'out'}: Qwen3ForCausalLM, {parameters:,} parameters in float32; weights in full precision"
    )
    sizes = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in files}
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "deep" / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} == set(
        sizes
    )


def test_an_empty_folder_is_filled_and_any_other_refused(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(run), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    console.warm("export", str(run), "--out", str(out)).assert_refused(str(out), "not an empty folder", "--out")
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    console.warm("export", str(run), "--out", str(tmp_path / "file")).assert_refused("not an empty folder")
    console.warm("export", str(run), "--out", str(tmp_path / "file" / "out")).assert_refused("cannot write to", "--out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_cannot_be_exported_is_refused(place, run, tmp_path):
    out = str(tmp_path / "out")
    console.warm("export", str(run), "--format", "gguf", "--out", out).assert_refused("gguf", "there is huggingface")
    console.warm("export", str(place / "nothing"), "--out", out).assert_refused("is not a run")
    gelu = small_runs.train(place, "gelu", *small_runs.COLD, "model.ffn=gelu")
    console.warm("export", str(gelu), "--out", out).assert_refused("model.ffn=gelu", "no architecture of Hugging Face's")
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_their_llama_refuses_are_refused_here():
    import transformers

    config = load_config([*small_runs.SMALL, "model.num_heads=3", "model.head_dim=8", "model.qk_norm=false"]).model
    with pytest.raises(UserError, match=r"model\.hidden_size=16 .* model\.num_heads=3"):
        describe(architecture_of(config), init_std=0.02, end_of_text=0, sequence=32, dtype="float32")
    with pytest.raises(Exception, match="not a multiple of the number of attention"):
        transformers.LlamaConfig(hidden_size=16, num_attention_heads=3, head_dim=8)


@pytest.mark.parametrize("file", ["tokenizer.json", "data.json"])
def test_a_run_with_a_broken_tokenizer_is_refused(run, tmp_path, file):
    import shutil

    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / file).write_text("{")
    console.warm("export", str(tmp_path / "copy"), "--out", str(tmp_path / "out")).assert_refused("tokenizer of")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [500, 20_000])
def test_a_full_disk_leaves_nothing(run, tmp_path, limit):
    answer = console.warm("export", str(run), "--out", str(tmp_path / "out"), limit_bytes=limit)
    answer.assert_refused(f"cannot write {tmp_path / 'out'}: File too large", code=1)
    assert list(tmp_path.iterdir()) == []


STOPS_WITHIN = """
import sys, time
import train.export
import train.trained.export_huggingface as export
whole = export._safetensors
def slow(*arguments):
    for number, part in enumerate(whole(*arguments)):
        yield part
        if number == 3:
            print("writing", flush=True)
            time.sleep(1000)
export._safetensors = slow
sys.exit(train.export.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_export_leaves_no_folder(run, tmp_path, sent):
    out = tmp_path / "out"
    command = [sys.executable, "-c", STOPS_WITHIN, str(run), "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        assert [path.name for path in tmp_path.iterdir()] == [f".out.{process.pid}"]
        os.kill(process.pid, sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode != 0
        assert "Traceback" not in err
    finally:
        process.kill()
    assert not out.exists()
    if sent != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []
    export_huggingface(run, out)
    assert (out / "model.safetensors").exists()


def test_a_run_goes_there_and_back_and_there_again_bit_for_bit(place, run, tmp_path):
    export_huggingface(run, tmp_path / "first")
    again = small_runs.train(place, "again", *small_runs.COLD, f"model.initial_weights={tmp_path}/first", "model.init_std=0.2")
    export_huggingface(again, tmp_path / "second")
    first, second = stored(tmp_path / "first"), stored(tmp_path / "second")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_file_is_what_the_library_would_write(run, tmp_path):
    """The same header and the same data, read by the library and written by it."""
    export_huggingface(run, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    save_file(load_file(path), tmp_path / "theirs", metadata={"format": "pt"})

    def parts(file: Path) -> tuple[dict, int]:
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        return {name: {**entry, "data_offsets": None} for name, entry in header.items()}, length % 8

    assert parts(path) == parts(tmp_path / "theirs")
