"""The loop: tiny real runs, a law, a plan, and the plan's own words back into the trainer."""

import shlex
import subprocess
import sys

import pytest

from tests.support.scaling import scaling
from train.config import load_config, require

# Bytes of the standard library; three sizes on two lengths each, 20 thousand to 50 thousand parameters.
COMMON = [
    "tokenizer=bytes", "model.vocab_size=257", "model.num_layers=2", "model.num_heads=2", "train.batch_tokens=2048",
    "train.sequence=64", "train.microbatch=32", "schedule.warmup_tokens=8192", "schedule.peak=0.01", "eval.tokens=20000",
]  # fmt: skip
SIZES, LENGTHS = (16, 24, 40), (65_536, 262_144)


def train(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "train", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # steps of milliseconds: more threads only wait for each other
        for size in SIZES:
            for tokens in LENGTHS:
                place = [f"run.dir={folder}/runs", f"data.cache_dir={folder}/cache", f"run.name=r-{size}-{tokens}"]
                shape = [f"model.hidden_size={size}", f"model.ffn_size={3 * size}", f"train.tokens={tokens}"]
                train(*COMMON, *place, *shape)
        yield folder


@pytest.mark.slow
def test_runs_go_through_table_fit_and_plan_and_the_printed_words_train(runs):
    shown = scaling("table", runs / "runs", "--json").json["runs"]
    assert len(shown) == 6
    assert all(row["status"] == "finished" and row["loss"] > 0 and row["flops"] > 0 for row in shown)

    fitted = scaling("fit", "over-training", runs / "runs", "--out", runs / "fit", "--json").json
    assert fitted["n"] == 6
    assert fitted["metrics"]["r2"] > 0.9

    answer = scaling("plan", runs / "fit", "--flops", "3e11", "--ladder-share", "0.2")
    assert answer.code == 0, answer.err
    commands = [line for line in answer.out.splitlines() if line.startswith("python -m train ")]
    plan = scaling("plan", runs / "fit", "--flops", "3e11", "--ladder-share", "0.2", "--json").json
    proposed = [plan["optimum"], *plan["ladder"]["runs"]]
    assert len(commands) == len(proposed) >= 2
    assert plan["ladder"]["after"] < plan["ladder"]["before"]
    assert sum(run["flops"] for run in plan["ladder"]["runs"]) <= 0.2 * 3e11
    for line, run in zip(commands, proposed, strict=True):
        words = shlex.split(line)[3:]
        assert words == run["overrides"]
        config = load_config(words)
        require(config, world_size=1)
        assert config.model.shape.parameters == pytest.approx(run["parameters"], rel=0.1)
        assert config.total_tokens == pytest.approx(run["tokens"], rel=0.1)
        # What the fitted runs had in common comes along.
        assert (config.tokenizer.name, config.model.vocab_size, config.train.batch_tokens) == ("bytes", 257, 2048)
        assert config.run.dir == f"{runs}/runs"

    cheapest = min(zip(commands, proposed, strict=True), key=lambda pair: pair[1]["flops"])
    train(*shlex.split(cheapest[0])[3:])
    again = scaling("fit", "over-training", runs / "runs", "--json").json
    assert again["n"] == 7
