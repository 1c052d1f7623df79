"""The keys of quantization that are refused, and the phase that `auto` comes to."""

import math

import pytest

from common.errors import UserError
from train.config import load_config, require
from train.config.resolve.quantization import low_precision_phase


def problems(*words: str) -> str:
    config = load_config(["train.tokens=1500000", "train.sequence=256", *words])
    with pytest.raises(UserError) as caught:
        require(config, world_size=config.parallel.layout.world_size)
    return str(caught.value)


@pytest.mark.parametrize(
    "word, said",
    [
        ("quant.bits=5", "quant.bits=5: there are quantizers for 1, 1.58, 2, 3, 4, 6, 8 bits"),
        ("quant.bits=1.5", "quant.bits=1.5: there are quantizers"),
        ("quant.embedding_bits=true", "there are quantizers"),
        ("quant.group=0", "quant.group=0: type row, or how many columns"),
        ("quant.group=rows", "quant.group=rows: type row"),
        ("quant.start=1", "quant.start=1: type auto, or the share"),
        ("quant.start=-0.1", "from 0 to below 1"),
        ("quant.start=later", "from 0 to below 1"),
        ("quant.activation_bits=4", "quant.activation_bits=4"),
        ("quant.b_init=6", "'quant.b_init' is a key of quant=diffq and quant=gaussian, this run has quant=qat"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_read(word, said):
    with pytest.raises(UserError) as caught:
        load_config(["quant=qat", word])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_is_no_option_beside_it():
    with pytest.raises(UserError, match="no such option, there is diffq, gaussian, none, qat"):
        load_config(["quant=[qat,gaussian]"])
    with pytest.raises(UserError, match="quant=gaussian and quant=qat: weights have one method"):
        load_config(["quant=qat", "quant=gaussian"])
    with pytest.raises(UserError, match=r"'quant\.bits' is a key of quant=qat, this run has quant=none: type quant=qat"):
        load_config(["quant.bits=4"])


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["quant.group=48"],
            "quant.group=48 does not divide model.hidden_size = 128, model.num_heads x model.head_dim = 128: take row",
        ),
        (["quant.group=128", "parallel.tensor=2"], "does not divide model.num_heads x model.head_dim / parallel.tensor=2 = 64"),
        (["train.tokens=200000"], "S = 0.2914 tokens per byte of parameters, f* = 0 where S is at most 1: less than one step"),
        (["quant.start=0.9999999"], "quant.start=0.9999999: less than one step"),
        (["schedule=cosine"], "take schedule=wsd, power or constant or quant.fuse_decay=false"),
        (["schedule=wsd_s"], "take schedule=wsd, power or constant"),
        (["quant.fuse_decay=false", "quant.start=0"], "needs tokens in full precision"),
        (["quant.fuse_decay=false", "schedule.floor=1e-3", "quant.rewarm_peak=1e-4"], "above quant.rewarm_peak=0.0001"),
        (["quant.start=0.5", "quant.rewarm_peak=1e-4"], "quant.rewarm_peak=0.0001 needs quant.fuse_decay=false"),
    ],
)
def test_what_contradicts_is_refused_before_anything_starts(words, said):
    assert said in problems("quant=qat", *words)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [3e6, 1e8])
def test_auto_is_the_law_in_whole_steps(bits, tokens):
    config = load_config(["quant=qat", f"quant.bits={bits}", f"train.tokens={tokens}"])
    phase, total = low_precision_phase(config), config.total_tokens
    fraction = math.exp(-6.7297 / math.log(total / (config.model.shape.parameters * bits / 8)))
    assert f"f* = exp(-6.7297 / ln S) = {fraction:.3g}" in phase.why
    if fraction * total < 4096:
        assert phase.start == total
        return
    assert 0 <= (total - phase.start) / total - fraction < 4096 / total
    assert phase.start % 4096 == 0
    assert not phase.holds(phase.start)
    assert phase.holds(phase.start + 4096)
