"""Drawing the next token, and runs that cannot be continued."""

import collections

import pytest
import torch

from common.errors import UserError
from tests.support.run_folders import carry_out
from train.config import load_config
from train.generate import main
from train.trained.generation import _draw
from train.trained.layout import config_on_layout

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])


def draws(temperature: float, top_k: int, count: int = 4000) -> dict[int, float]:
    generator = torch.Generator().manual_seed(1)
    counts = collections.Counter(_draw(LOGITS, temperature, top_k, generator) for _ in range(count))
    return {token: number / count for token, number in counts.items()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_that_temperature(temperature):
    expected = (LOGITS / temperature).softmax(0).tolist()
    found = draws(temperature, top_k=0)
    assert all(found.get(token, 0.0) == pytest.approx(share, abs=0.04) for token, share in enumerate(expected))


def test_top_k_leaves_the_k_likeliest():
    assert set(draws(2.0, top_k=2)) == {1, 3}
    assert set(draws(5.0, top_k=5)) == set(draws(5.0, top_k=100)) == {0, 1, 2, 3, 4}


def test_zero_and_the_smallest_temperatures_take_the_likeliest():
    assert set(draws(0.0, top_k=0, count=5)) == set(draws(5e-324, top_k=0, count=5)) == {1}


def test_a_run_without_weights_is_refused(tmp_path, capsys):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "tokenizer.json").write_text("{}")
    (shards / "index.json").write_text("{}")
    carry_out(load_config([f"run.dir={tmp_path}/runs", "run.name=a"]), shards, "running")
    assert main([str(tmp_path / "runs" / "a"), "--prompt", "a"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "no checkpoint yet" in said


@pytest.mark.parametrize(
    "word, said",
    [
        ("model.num_layers=2", "the axes of the layout"),
        ("tensor=2", "the axes of the layout"),
        ("parallel.recompute=full", "the axes of the layout"),
        ("parallel.tensor=two", "a number from 1 up"),
        ("parallel.tensor=0", "a number from 1 up"),
    ],
)
def test_words_after_the_run_are_axes_and_sizes(tmp_path, word, said):
    with pytest.raises(UserError, match=said):
        config_on_layout(tmp_path, [word])
