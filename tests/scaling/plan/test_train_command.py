"""The words of a planned run, composed by the trainer's own configuration."""

import pytest
import yaml

from scaling.plan.train_command import common_context, words_for
from train.config import load_config, require


def test_what_runs_had_in_common_comes_along_and_composes_to_the_same(tmp_path):
    base = [
        "data=files", f"data.files=[{tmp_path}/a b.txt]", 'data.document_separator="<|sep|> x"',
        "tokenizer=bytes", "model.vocab_size=300",
        "schedule=constant", "schedule.peak=3e-4", "model.ffn=gelu", "train.batch_tokens=8192",
        "optimizer.weight_decay=0.05", f"run.dir={tmp_path}",
    ]  # fmt: skip
    configs = []
    for number, size in enumerate((64, 128)):
        config = load_config(
            [*base, f"run.name=r{number}", f"model.hidden_size={size}", f"train.tokens={10**6 * (number + 1)}"]
        )
        (tmp_path / f"r{number}").mkdir()
        (tmp_path / f"r{number}" / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
        configs.append(config)
    context = common_context([str(tmp_path / "r0"), str(tmp_path / "r1")])
    words = words_for(context, 1e6, 5e6, name="next", learning_rate=1e-3)
    planned = load_config(words)
    require(planned, world_size=1)
    assert planned.data == configs[0].data
    assert planned.tokenizer == configs[0].tokenizer
    assert planned.optimizer == configs[0].optimizer
    assert (planned.schedule.name, planned.schedule.peak) == ("constant", 1e-3)
    assert (planned.train.batch_tokens, planned.model.ffn, planned.model.vocab_size) == (8192, "gelu", 300)
    assert planned.model.shape.parameters == pytest.approx(1e6, rel=0.1)
    # A default is not spelled out.
    assert not any(word.startswith(("health.", "parallel.", "optimizer.beta1", "model.rope_theta")) for word in words)


def test_a_short_run_warms_up_for_a_tenth_of_it():
    words = words_for({"config": {"model.vocab_size": 257, "schedule.warmup_tokens": 80_000}}, 1e5, 100_000, name="short")
    assert "schedule.warmup_tokens=10000" in words
