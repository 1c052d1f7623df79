"""Named validation sets: tokens of the run's tokenizer, what they share with the training text, and losses of a run."""

import json
import math

import pytest

from common.errors import UserError
from scaling.record import EvaluationLine, StepLine, read_metrics, read_record
from tests.support import console, small_runs
from train.config.sections.tokenizer import BpeTokenizerConfig
from train.data.prepare import prepare
from train.data.sets import open_sets, overlap, prepare_sets
from train.data.shards import open_set, open_shards


@pytest.mark.parametrize("own", [0, 3])
def test_a_set_has_the_runs_tokens_and_its_share_of_the_training_text_is_said(workplace, own):
    corpus = workplace.sentences(200)
    shards = open_shards(prepare(corpus, BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000), progress=False))
    trained = workplace.texts_of(shards)["train"]
    texts = [f"other text {number} {workplace.sentence(number)}" for number in range(9)] + trained[40 : 40 + own]
    path = workplace.write_json_lines(workplace.text / "sets" / "new.jsonl", texts)
    sets = open_sets({"new": [str(path)]}, corpus)
    folders = prepare_sets(sets, corpus, shards, progress=False)
    assert prepare_sets(sets, corpus, shards, progress=False) == folders
    stream = open_set(folders["new"])
    assert shards.tokenizer().decode(stream.read(0, stream.tokens).tolist(), skip_special_tokens=False) == "".join(
        f"{text}<|endoftext|>" for text in texts
    )
    said = overlap("new", sets["new"], corpus, folders["new"], shards)
    assert said is None if not own else f"eval.sets.new overlaps the training text: {own / (9 + own):.1%}" in said


def test_a_set_of_training_files_is_known_even_where_every_documents_tail_is_held_out(workplace):
    corpus = workplace.sentences(20)
    shards = open_shards(prepare(corpus, BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000), progress=False))
    assert shards.split == "position"
    sets = open_sets({"same": [corpus.files[0]]}, corpus)
    folder = prepare_sets(sets, corpus, shards, progress=False)["same"]
    assert "100.0% of its 1 files" in (overlap("same", sets["same"], corpus, folder, shards) or "")


def test_what_is_wrong_with_a_set_is_said(workplace):
    corpus = workplace.sentences(20)
    (workplace.text / "a.csv").write_text("a")
    for sets, said in [
        ({"validation": ["x"]}, "give this set another name"),
        ({"x": []}, r"eval\.sets\.x has no files"),
        ({"x": [str(workplace.text / "none*")]}, r"(?s)no file matches .*'eval\.sets=\{x: \["),
        ({"x": [str(workplace.text / "a.csv")]}, r"'eval\.sets=\{x: \["),
    ]:
        with pytest.raises(UserError, match=said):
            open_sets(sets, corpus)
    shards = open_shards(prepare(corpus, BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000), progress=False))
    (workplace.text / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"eval\.sets\.x has no text"):
        prepare_sets(open_sets({"x": [str(workplace.text / "blank.txt")]}, corpus), corpus, shards, progress=False)


def test_a_run_has_the_losses_of_its_sets_and_else_the_losses_that_it_has_without(tmp_path):
    """The same losses as the run's scorer of texts gives, which reads documents one by one: a set of one short document."""
    (tmp_path / "new.txt").write_text("line 7 of no training text")
    sets = f"eval.sets={{new: [{tmp_path}/new.txt], same: [{tmp_path}/text.txt]}}"
    (tmp_path / "text.txt").write_text(small_runs.TEXT)
    answer = console.warm("train", "run.name=with", *small_runs.words(tmp_path, *small_runs.HOT, sets))
    assert answer.code == 0, answer.err
    assert "eval.sets.same overlaps the training text" in answer.err
    with_sets, without = tmp_path / "runs" / "with", small_runs.train(tmp_path, "without", *small_runs.HOT)
    record, plain = read_record(with_sets), read_record(without)
    assert list(record.losses) == ["validation", "new", "same"]
    assert record.losses["validation"] == record.loss == plain.loss
    losses = [[line.loss for line in read_metrics(run) if isinstance(line, StepLine)] for run in (with_sets, without)]
    assert losses[0] == losses[1]
    line = [line for line in read_metrics(with_sets) if isinstance(line, EvaluationLine)][-1]
    assert (line.validation, line.bits_per_byte) == (record.losses, record.set_bits_per_byte)
    result = json.loads(console.warm("evaluate", str(with_sets), "--json").out)
    assert result["losses"] == pytest.approx(record.losses)
    assert result["set_bits_per_byte"] == pytest.approx(record.set_bits_per_byte)
    tokens = open_set_tokens(with_sets, tmp_path)
    assert record.set_bits_per_byte["new"] == pytest.approx(record.losses["new"] * tokens / math.log(2) / 26)


def open_set_tokens(run, place) -> int:
    """Tokens of the text in new.txt and its end of text."""
    from train.trained.scoring import read_run_tokenizer

    return len(read_run_tokenizer(run)[0].encode((place / "new.txt").read_text()).ids) + 1
