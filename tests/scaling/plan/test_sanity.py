"""What a plan leaves open is said."""

import json

from scaling.plan.choice import Choice
from scaling.plan.sanity import remarks
from scaling.plan.train_command import common_context

FAR = Choice(name="optimum", parameters=1e9, tokens=2e10)


def test_a_rate_that_nobody_planned_is_named():
    (said,) = remarks(FAR, {"config": {"schedule.peak": 0.005}})
    assert "schedule.peak=0.005" in said
    assert "optimizer.mup=true" in said
    (said,) = remarks(FAR, {"config": {}})
    assert "several" in said
    assert not list(remarks(FAR, {"config": {"optimizer.mup": True}}))
    assert not list(remarks(Choice(name="optimum", parameters=1e9, tokens=2e10, learning_rate=1e-3), {"config": {}}))
    assert not list(remarks(FAR, {}))


def test_epochs_are_counted(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.yaml").write_text("optimizer: {name: adamw, mup: true}")
        (folder / "data.json").write_text(json.dumps({"splits": {"train": {"tokens": 2_500_000}}}))
    context = common_context(map(str, folders))
    (said,) = remarks(FAR, context)
    assert said.startswith("8,000 epochs of the runs' corpus of 2,500,000 tokens")
    assert not list(remarks(Choice(name="optimum", parameters=1e9, tokens=9e6), context))
    (folders[1] / "data.json").unlink()
    assert "corpus_tokens" not in common_context(map(str, folders))
