"""One loss on every layout: losses and gradient norms of eight steps equal those of a bare single-process loop."""

import json
import random

import numpy as np
import pytest

from tests.parity import cases, reference
from train.config import load_config
from train.data.prepare import prepare
from train.data.shards import open_shards

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5}  # relative

# A layout is the overrides that make it; its world size is their product.
SINGLE: dict[str, int] = {}
LAYOUTS = {
    "single": SINGLE,
    "replicate2": {"replicate": 2},
    "shard2": {"shard": 2},
    "replicate2_shard2": {"replicate": 2, "shard": 2},
    "pipeline2": {"pipeline": 2},
    "tensor2": {"tensor": 2},
    "tensor2_shard2": {"tensor": 2, "shard": 2},
}
MODEL = [
    *("model.num_layers=2", "model.hidden_size=32", "model.num_heads=4", "model.num_kv_heads=2", "model.ffn_size=48"),
    *("model.vocab_size=272", "model.init_std=0.1"),
]
# 8 steps of 16 sequences of 32 tokens: warmup, a constant stretch and decay all fall into them.
LENGTH = ["train.steps=8", "train.sequence=32", "train.batch_tokens=512", "eval.tokens=600"]
SCHEDULE = ["schedule.peak=5e-3", "schedule.warmup_tokens=1024", "schedule.decay_fraction=0.25"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[str]:
    """Overrides for a corpus of short documents, of which several fall into one sequence."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(60)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(900)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return ["data=files", f"data.files=[{folder}/text.jsonl]", f"data.cache_dir={folder}/cache", "tokenizer=bytes"]


@pytest.fixture(scope="module")
def expected(corpus):
    """The bare loop's losses and norms, computed once for each distinct run."""
    known: dict[tuple[str, ...], list[tuple[float, float]]] = {}

    def of(overrides: list[str]) -> list[tuple[float, float]]:
        key = tuple(overrides)
        if key not in known:
            config = load_config([*corpus, *overrides])
            known[key] = reference.losses_and_norms(config, open_shards(prepare(config.data, config.tokenizer, progress=False)))
        return known[key]

    return of


def _compare(group, corpus, expected, tmp_path, layout: dict[str, int], run: list[str], how: list[str], tolerance: float):
    """`run` is what the run computes, `how` what must make no difference."""
    axes = [f"parallel.{axis}={size}" for axis, size in layout.items()]
    place = [f"run.dir={tmp_path}", *corpus]
    answers = group(int(np.prod(list(layout.values())))).run(cases.train, [*place, *run, *axes, *how], timeout=300.0)
    np.testing.assert_allclose(answers[0], expected(run), rtol=tolerance, atol=0)


@pytest.mark.parametrize("microbatch", [1, 4])  # on one rank: 16 and 4 micro-batches; on four: 4 and 1, no accumulation
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(group, corpus, expected, tmp_path, layout, precision, microbatch):
    run = [*MODEL, *LENGTH, *SCHEDULE, f"train.precision={precision}"]
    how = [f"train.microbatch={microbatch}"]
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], run, how, TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_layouts(group, corpus, expected, tmp_path, layout, precision):
    run = [*MODEL, *LENGTH, *SCHEDULE, f"train.precision={precision}"]
    how = ["train.microbatch=4", "train.compile=true"]
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], run, how, TOLERANCE[precision])


@pytest.mark.parametrize("layout", ["single", "replicate2_shard2"])
@pytest.mark.parametrize(
    "variant",
    [
        ["model.tie_embeddings=true"],
        ["model.ffn=gelu", "model.qk_norm=false"],
        ["train.z_loss=1e-2"],
        ["optimizer.clip_norm=0.1"],
    ],
    ids=lambda variant: variant[0],
)
def test_variants_of_model_and_objective(group, corpus, expected, tmp_path, layout, variant):
    run = [*MODEL, *LENGTH, *SCHEDULE, "train.precision=fp64", *variant]
    _compare(group, corpus, expected, tmp_path, LAYOUTS[layout], run, ["train.microbatch=2"], TOLERANCE["fp64"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_stays_near_fp32(group, corpus, expected, tmp_path, layout):
    """bf16 keeps 8 bits of mantissa: activations carry errors of 2^-9, which average out in a loss over 512 tokens."""
    run = [*MODEL, *LENGTH, *SCHEDULE, "train.precision=fp32"]
    _compare(
        group, corpus, expected, tmp_path, LAYOUTS[layout], run, ["train.microbatch=2", "train.precision=bf16"], tolerance=2e-2
    )


def test_initial_weights_are_bitwise_those_of_one_process(group, corpus):
    overrides = [*corpus, *MODEL, "model.hidden_size=36", "model.head_dim=8", "model.vocab_size=271"]  # nothing divides evenly
    single = group(1).run(cases.initial_weights, overrides)[0]
    assert len(set(single.values())) > 10
    for axes in (["parallel.shard=2"], ["parallel.replicate=2"]):
        assert group(2).run(cases.initial_weights, [*overrides, *axes]) == [single] * 2
    for axes in (["parallel.shard=4"], ["parallel.replicate=2", "parallel.shard=2"]):
        assert group(4).run(cases.initial_weights, [*overrides, *axes]) == [single] * 4


def test_packed_documents_are_in_the_batches(corpus):
    """The cases above mean something for packing only if sequences hold several documents."""
    from train.data.loader import TrainLoader

    config = load_config([*corpus, *LENGTH])
    shards = open_shards(prepare(config.data, config.tokenizer, progress=False))
    batch = TrainLoader(shards.train, config.train.sequence, config.run.seed).batch(range(16))
    assert (batch.document_BS.amax(dim=1) > 0).float().mean() > 0.5
