"""The order of the composition: what breaks when two steps swap; what a dry run foretells."""

import json

import pytest

from tests.support import compositions
from tests.support.group import CaseFailed
from train.build.dry_run import shares
from train.config import load_config

MODEL = ["model.num_layers=6", "model.hidden_size=36", "model.num_heads=4", "model.head_dim=6", "model.ffn_size=54"]
LENGTH = ["model.vocab_size=270", "tokenizer=bytes", "train.sequence=32", "train.batch_tokens=512", "train.microbatch=1"]


def test_sharding_before_splitting_tensors_breaks(group):
    with pytest.raises(CaseFailed, match=r"only accepts torch\.Tensor but got <class .*DTensor"):  # which is sharded already
        group(4).run(compositions.shard_before_tensor, [*MODEL, *LENGTH, "parallel.tensor=2", "parallel.shard=2"])


def test_quantizing_after_splitting_tensors_loses_the_split(group):
    overrides = [*MODEL, *LENGTH, "parallel.tensor=2", "quant=qat", "quant.start=0"]
    assert group(2).run(compositions.tensor_before_quantize, overrides) == [(0, 6 * 7 + 2)] * 2


def test_sharding_in_bf16_leaves_scales_in_fp32(group):
    overrides = [*MODEL, *LENGTH, "train.precision=bf16", "parallel.shard=2", "quant=qat", "quant.start=0"]
    assert group(2).run(compositions.dtypes_in_the_quantizer, overrides) == [{("torch.bfloat16", "torch.float32")}] * 2


def test_materialising_before_sharding_holds_the_whole_model(group):
    overrides = [*MODEL, *LENGTH, "parallel.shard=2"]
    whole = 4 * load_config(overrides).model.shape.parameters
    early = group(2).run(compositions.peak_bytes_of_materialising, overrides, "materialise")
    late = group(2).run(compositions.peak_bytes_of_materialising, overrides, "shard")
    assert min(early) >= whole
    assert max(late) <= 0.6 * whole


CHOICES = [
    *[("token_ring", choice) for choice in ("none", "selective", "full")],
    *[(method, "none") for method in ("ring", "ring_bidirectional", "ulysses")],
    ("ulysses", "selective"),
]


def test_no_tensor_on_a_context_rank_is_a_sequence_times_a_sequence(group):
    """Packed documents of 300 tokens. The largest a tensor may be is the mask of 256 queries over all keys."""
    sequence, base = 4096, [*MODEL, *LENGTH, "train.sequence=4096", "train.batch_tokens=4096", "parallel.context=2"]
    base += ["model.num_layers=1"]
    runs = [[*base, f"parallel.context_method={method}", f"parallel.recompute={choice}"] for method, choice in CHOICES]
    documents = [position // 300 for position in range(sequence)]
    (found, _) = group(2).run(compositions.one_step, runs, documents, timeout=300.0)
    for run, step in zip(runs, found, strict=True):
        assert step["largest"] <= 256 * sequence, run[-2:]
        assert step["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
    # Forward and backward exchange equally often; a block that is computed again does so again, unless the result was kept.
    exchanges = dict(zip(CHOICES, (step["exchanges"] for step in found), strict=True))
    assert exchanges["token_ring", "none"] == exchanges["token_ring", "selective"] > 0
    assert exchanges["token_ring", "full"] == 1.5 * exchanges["token_ring", "none"]


QUANTIZED = [[], ["quant=qat", "quant.group=9"], ["quant=qat", "model.tie_embeddings=true"]]


@pytest.mark.parametrize(
    "axes",
    [
        ["shard=2"],
        ["tensor=2"],
        ["pipeline=2", "pipeline_schedule=zbv"],
        ["tensor=2", "shard=2"],
        ["context=2", "shard=2"],
        ["pipeline=2", "tensor=2", "pipeline_schedule=interleaved", "virtual_stages=3"],
        ["tensor=2", "pipeline=2", "shard=2"],
    ],
    ids="_".join,
)
def test_a_dry_run_foretells_every_rank_s_share(group, axes):
    words = [*MODEL, "model.num_heads=6", *LENGTH, *(f"parallel.{axis}" for axis in axes)]
    configs = [load_config([*words, *quant]) for quant in QUANTIZED]
    every = group(configs[0].parallel.layout.world_size).run(compositions.local_sizes, configs)
    for config, quant, found in zip(configs, QUANTIZED, zip(*every, strict=True), strict=True):
        per_coordinate = len(found) // config.parallel.pipeline
        for share in shares(config):
            first = share.pipeline_rank * per_coordinate
            assert max(found[first : first + per_coordinate]) == (share.parameters, share.largest), quant


def test_a_large_model_is_divided_whole():
    sizes = ["train.sequence=2048", "train.microbatch=1", "train.batch_tokens=131072"]
    config = load_config(["model=175b", *sizes, "parallel.tensor=8", "parallel.pipeline=8", "parallel.shard=8"])
    divided = shares(config)
    assert config.model.shape.parameters == pytest.approx(175e9, rel=0.01)
    # The tied table stands on the first and on the last stage.
    held = sum(share.parameters for share in divided) * 64
    assert held == pytest.approx(config.model.shape.parameters + config.model.shape.parameters_embedding, rel=1e-3)


def test_a_trace_has_the_named_regions(group, tmp_path):
    from tests.support import whole_runs

    (tmp_path / "text.txt").write_text("a little text, many times over. " * 400)
    overrides = [*MODEL, *LENGTH, "data=files", f"data.files=[{tmp_path}/text.txt]", f"data.cache_dir={tmp_path}/cache"]
    overrides += [f"run.dir={tmp_path}", "train.steps=7", "schedule.warmup_tokens=0", "eval.tokens=64", "train.profile=true"]
    group(1).run(whole_runs.train, [load_config(overrides)])
    events = json.loads((tmp_path / "run" / "trace" / "rank_0000.json").read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert {"batches", "forward_backward", "gradient_norm", "optimizer"} <= set(names)
    assert names.count("optimizer") == 3
