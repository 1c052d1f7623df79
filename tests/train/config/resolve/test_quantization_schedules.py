"""Where the learning rate decays in a run with a quantized phase."""

import pytest

from train.config import load_config, schedule_of

# 1,000 steps of 1,000 tokens, warmup over the first 50,000.
LENGTH = [
    "train.tokens=1e6",
    "train.batch_tokens=1000",
    "train.sequence=250",
    "train.microbatch=4",
    "schedule.warmup_tokens=50000",
]
PEAK = ["schedule.peak=1", "schedule.decay_fraction=0.2", "schedule.decay_shape=linear"]


def rates(*words: str, at: list[int]) -> list[float]:
    schedule = schedule_of(load_config([*LENGTH, *PEAK, "quant=qat", *words]))
    return [schedule.learning_rate(tokens) for tokens in at]


@pytest.mark.parametrize("start, begin", [(0.9, 900_000), (0.8, 800_000), (0.5, 800_000), (0.0, 800_000)])
def test_fused_the_only_decay_is_quantized_and_no_longer_than_the_schedule_s_own(start, begin):
    middle = (begin + 1_000_000) // 2
    found = rates(f"quant.start={start}", at=[50_000, begin, middle, 1_000_000])
    assert found == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_classic_decays_in_full_precision_then_rises_and_decays_again():
    """0.6 of the tokens in full precision, the last fifth of those a decay; a tenth of the rest is the second rise."""
    words = ["quant.start=0.6", "quant.fuse_decay=false", "quant.rewarm_fraction=0.1", "quant.rewarm_peak=0.5"]
    at = [480_000, 540_000, 600_000, 620_000, 640_000, 820_000, 1_000_000]
    assert rates(*words, at=at) == pytest.approx([1.0, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0])
    assert rates(*words[:-1], at=[640_000]) == [1.0]


def test_classic_with_a_cosine_and_with_a_constant():
    words = ["quant.start=0.5", "quant.fuse_decay=false", "quant.rewarm_fraction=0"]
    length = [word for word in LENGTH if "warmup" not in word]
    cosine = schedule_of(
        load_config([*length, "schedule=cosine", "schedule.peak=1", "schedule.warmup_tokens=0", "quant=qat", *words])
    )
    assert [cosine.learning_rate(tokens) for tokens in (250_000, 500_000, 750_000, 1_000_000)] == pytest.approx(
        [0.5, 0, 0.5, 0]
    )
    constant = schedule_of(load_config([*LENGTH, "schedule=constant", "schedule.peak=1", "quant=qat", *words]))
    assert {constant.learning_rate(tokens) for tokens in (50_000, 500_000, 500_001, 1_000_000)} == {1.0}


def test_fused_on_a_power_law_decays_from_where_the_law_stands():
    config = load_config([*LENGTH, "schedule=power", "schedule.decay_fraction=0.5", "quant=qat", "quant.start=0.9"])
    schedule = schedule_of(config)
    assert schedule.decays == ((900_000, 1_000_000),)
    assert schedule.learning_rate(900_001) == pytest.approx(schedule.trunk(900_000), rel=1e-4)
