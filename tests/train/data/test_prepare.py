"""Built once, whole or not at all; the split; what is refused."""

import shutil
from functools import partial

import numpy as np
import pytest

from common.errors import UserError, WorkFailed
from train.config.sections.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig
from train.data import prepare as prepare_module
from train.data.prepare import build_or_reuse, documents_to_split, prepare
from train.data.shards import open_shards
from train.data.tokenizers.base import pieces

BYTES = BytesTokenizerConfig(name="bytes")
BPE = BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_split_by_document(workplace, tokenizer):
    texts = [workplace.sentence(number) for number in range(200)]
    texts[3] = "a text with <|endoftext|> in it"
    corpus = workplace.corpus(workplace.write_json_lines(workplace.text / "a.jsonl", texts))
    shards = open_shards(prepare(corpus, tokenizer, progress=False))
    found = workplace.texts_of(shards)
    assert shards.split == "document"
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    assert [text for text in texts if text in set(found["train"])] == found["train"]
    assert 8 <= len(found["validation"]) <= 35
    for name, stream in (("train", shards.train), ("validation", shards.validation)):
        assert stream.bytes == sum(len(text.encode()) for text in found[name])
        assert stream.documents == len(found[name])
    assert 0 < shards.bigram_loss < np.log(shards.vocab_size)


def test_split_is_the_same_for_every_tokenizer(workplace):
    corpus = workplace.sentences(120)
    one, other = (workplace.texts_of(open_shards(prepare(corpus, tokenizer, progress=False))) for tokenizer in (BYTES, BPE))
    assert one == other


@pytest.mark.parametrize("count", [1, 7, 49])
def test_split_by_position_with_few_documents(workplace, count):
    texts = [workplace.sentence(number, words=60) for number in range(count)]
    corpus = workplace.corpus(workplace.write_json_lines(workplace.text / "a.jsonl", texts), fraction=0.25)
    shards = open_shards(prepare(corpus, BPE, progress=False))
    found = workplace.texts_of(shards)
    assert shards.split == "position"
    assert [head + tail for head, tail in zip(found["train"], found["validation"], strict=True)] == texts
    share = sum(map(len, found["validation"])) / sum(map(len, texts))
    assert 0.25 <= share < 0.26
    assert shards.train.bytes + shards.validation.bytes == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.02, 0.001, 0.98])
def test_documents_to_split_is_the_least(fraction):
    needed = documents_to_split(fraction)
    held_out = prepare_module._held_out(0, needed, fraction)
    assert held_out.any()
    assert not held_out.all()
    if needed > 50:
        assert held_out[:-1].all() or not held_out[:-1].any()


def test_split_falls_back_where_no_document_would_be_held_out(workplace):
    fraction = 0.001
    assert documents_to_split(fraction) > 60
    texts = [workplace.sentence(number) for number in range(60)]
    corpus = workplace.corpus(workplace.write_json_lines(workplace.text / "a.jsonl", texts), fraction=fraction)
    assert open_shards(prepare(corpus, BYTES, progress=False)).split == "position"
    assert documents_to_split(1e-12) is None
    assert documents_to_split(1 - 1e-12) is None


def test_too_little_text_for_two_splits(workplace):
    (workplace.text / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"validation split would be empty[\s\S]*data\.validation_fraction="):
        prepare(workplace.corpus(), BYTES, progress=False)
    workplace.assert_nothing_left()


def test_long_documents_and_small_files(workplace, monkeypatch):
    monkeypatch.setattr(prepare_module, "pieces", partial(pieces, limit=7))
    monkeypatch.setattr(prepare_module, "_BATCH_CHARACTERS", 100)
    texts = [workplace.sentence(number) * (1 + number % 4) for number in range(80)]
    corpus = workplace.corpus(workplace.write_json_lines(workplace.text / "a.jsonl", texts))
    folder, built = build_or_reuse(corpus, BPE, progress=False, shard_tokens=50)
    shards = open_shards(folder)
    assert built
    assert len(list(folder.glob("train_*.bin"))) == -(-shards.train.tokens // 50)
    found = workplace.texts_of(shards)
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    middle = shards.train.read(45, 155).tolist()
    assert middle == shards.train.read(0, 200).tolist()[45:155]


def test_second_run_reuses(workplace, monkeypatch):
    corpus = workplace.sentences(60)
    folder, built = build_or_reuse(corpus, BPE, progress=False)
    assert built
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr("train.data.corpus._hash_file", lambda *arguments: pytest.fail("read the content again"))
    monkeypatch.setattr(prepare_module, "_build", lambda *arguments: pytest.fail("built again"))
    assert build_or_reuse(corpus, BPE, progress=False) == (folder, False)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_changes_the_folder(workplace):
    corpus = workplace.sentences(60)
    folders = {
        prepare(corpus, BYTES, progress=False),
        prepare(corpus, BPE, progress=False),
        prepare(workplace.corpus(*corpus.files, fraction=0.2), BYTES, progress=False),
        prepare(workplace.sentences(61), BYTES, progress=False),
    }
    assert len(folders) == 4
    elsewhere = workplace.text / "elsewhere"
    moved = workplace.write_json_lines(elsewhere / "b.jsonl", [workplace.sentence(number) for number in range(61)])
    assert prepare(workplace.corpus(moved), BYTES, progress=False) in folders


def test_same_bytes_from_every_build(workplace):
    corpus = workplace.sentences(60)
    folder = prepare(corpus, BPE, progress=False)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    assert prepare(corpus, BPE, progress=False) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_silent(workplace, capfd):
    prepare(workplace.sentences(60), BPE, progress=False)
    prepare(workplace.sentences(61), BPE, progress=True)
    assert capfd.readouterr() == ("", "")


def test_folder_without_index_is_built_anew(workplace):
    corpus = workplace.sentences(60)
    folder = prepare(corpus, BYTES, progress=False)
    (folder / "index.json").unlink()
    assert build_or_reuse(corpus, BYTES, progress=False) == (folder, True)
    open_shards(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted(workplace, monkeypatch, error):
    corpus = workplace.sentences(60)

    def interrupt(*arguments):
        raise error

    monkeypatch.setattr(prepare_module, "bigram_loss", interrupt)
    with pytest.raises(error):
        prepare(corpus, BYTES, progress=False)
    workplace.assert_nothing_left()


def test_corpus_changes_meanwhile(workplace, monkeypatch):
    corpus = workplace.sentences(60)
    monkeypatch.setattr(prepare_module, "bigram_loss", lambda *arguments: workplace.sentences(61) and 1.0)
    with pytest.raises(WorkFailed, match="changed while it was read"):
        prepare(corpus, BYTES, progress=False)
    workplace.assert_nothing_left()
