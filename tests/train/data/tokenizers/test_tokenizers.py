"""Round trips, special tokens, determinism, pieces, tokenizer files."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from common.errors import UserError
from train.config.sections.tokenizer import FileTokenizerConfig
from train.data.prepare import prepare
from train.data.shards import open_shards
from train.data.tokenizers.base import END_OF_TEXT, Encoder, pieces, read_tokenizer
from train.data.tokenizers.bpe import train_bpe
from train.data.tokenizers.bytes import BytesEncoder, bytes_tokenizer

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "the cat sat on the mat; the cat sat\n" * 3,
    "na\u00efve caf\u00e9 \u4f60\u597d\n",
]


def trained(vocab_size: int = 400, train_bytes: int = 10_000) -> Encoder:
    return Encoder(train_bpe(TEXTS * 4, vocab_size, train_bytes, lambda count: None), END_OF_TEXT)


BPE = trained()
SLOW_BYTES = Encoder(bytes_tokenizer(), END_OF_TEXT)
FAST_BYTES = BytesEncoder(bytes_tokenizer(), END_OF_TEXT)

some_text = st.text() | st.text("<|endofxt> \n\t\r") | st.lists(st.sampled_from([*TEXTS, END_OF_TEXT, " "])).map("".join)


@given(some_text)
@pytest.mark.parametrize("encoder", [BPE, SLOW_BYTES, FAST_BYTES], ids=["bpe", "bytes-slow", "bytes-fast"])
def test_round_trip_without_special_tokens(encoder, text):
    tokens = encoder.encode([text])[0]
    assert encoder.end_of_text not in tokens
    assert encoder.tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == text


@given(st.lists(some_text, max_size=3))
def test_bytes_fast_path_gives_the_same_ids(texts):
    for fast, slow, text in zip(FAST_BYTES.encode(texts), SLOW_BYTES.encode(texts), texts, strict=True):
        assert fast.tolist() == slow.tolist() == list(text.encode())


def test_bytes_vocabulary():
    assert (SLOW_BYTES.end_of_text, SLOW_BYTES.vocab_size) == (256, 257)


def test_every_byte_has_a_token():
    assert BPE.vocab_size == 400 or BPE.vocab_size > 257
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert all(BPE.tokenizer.token_to_id(character) is not None for character in alphabet)


def test_training_is_deterministic_across_processes():
    script = (
        "import hashlib, sys\n"
        "from train.data.corpus import open_corpus\n"
        "from train.config.sections.corpus import StdlibCorpusConfig\n"
        "from train.data.tokenizers.bpe import train_bpe\n"
        "config = StdlibCorpusConfig(name='stdlib', include_tests=False, cache_dir='', validation_fraction=.1)\n"
        "corpus = open_corpus(config)\n"
        "tokenizer = train_bpe(corpus.documents(), 1000, 300_000, lambda count: None)\n"
        "print(tokenizer.get_vocab_size(), hashlib.sha256(tokenizer.to_str().encode()).hexdigest())\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate() for process in running]
    assert said[0] == said[1]
    assert said[0][0].startswith("1000 ")
    assert said[0][1] == ""


def test_trains_on_the_first_bytes_only():
    def reads_too_far():
        yield "a" * 99 + "\u20ac"
        raise AssertionError("read on")

    counted = []
    train_bpe(reads_too_far(), 300, 100, counted.append)
    assert sum(counted) == 100


@given(st.text("ab\n", max_size=60), st.integers(1, 9))
def test_pieces(text, limit):
    parts = list(pieces(text, limit))
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts) or parts == [""]
    for part, following in itertools.pairwise(parts):
        assert part.endswith("\n") or "\n" not in (part + following)[:limit]


def save(path, tokenizer: Tokenizer) -> FileTokenizerConfig:
    path.write_text(tokenizer.to_str())
    return FileTokenizerConfig(name="file", path=str(path), end_of_text="</s>")


def word_level(words: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_file_adds_truncates_and_pads_nothing(tmp_path):
    tokenizer = train_bpe(TEXTS, 300, 10_000, lambda count: None)
    tokenizer.add_tokens([AddedToken("</s>", special=False)])  # would be found in text
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 300)])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50, pad_id=300, pad_token="</s>")
    assert tokenizer.token_to_id("</s>") == 300
    encoder = Encoder(read_tokenizer(tmp_path / save(tmp_path / "t.json", tokenizer).path), "</s>")
    text = "the cat </s> sat on the mat"
    tokens = encoder.encode([text])[0]
    assert 300 not in tokens
    assert encoder.tokenizer.decode(tokens.tolist()) == text
    assert encoder.end_of_text == 300
    assert encoder.vocab_size == 301


def test_vocabulary_with_holes(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 70_000, "</s>": 3}, unk_token="<unk>"))
    assert Encoder(tokenizer, "</s>").vocab_size == 70_001


def test_end_of_text_made_from_plain_text(tmp_path):
    encoder = Encoder(word_level(["<unk>", "stop", "cat"]), "stop")
    with pytest.raises(UserError, match="from plain text"):
        encoder.encode(["cat stop"])


def test_tokenizer_that_cannot_encode(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"cat": 0, "</s>": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="cannot encode"):
        Encoder(tokenizer, "</s>").encode(["dog"])


def test_bad_tokenizer_files(workplace):
    corpus = workplace.sentences(60)

    def complaint(path, end_of_text: str = "</s>") -> str:
        with pytest.raises(UserError) as error:
            prepare(corpus, FileTokenizerConfig(name="file", path=str(path), end_of_text=end_of_text), progress=False)
        workplace.assert_nothing_left()
        assert str(error.value).count("\n") < 5
        return str(error.value)

    text = workplace.text
    assert "tokenizer.path=" in complaint(text / "missing.json")
    (text / "a.json").write_text('{"text": 1}')
    (text / "b.json").write_bytes(b"\xff\xfe")
    for name in ("a.json", "b.json"):
        message = complaint(text / name)
        assert "is not a tokenizer.json" in message
        assert name in message
    (text / "c.json").write_text(BPE.tokenizer.to_str())
    message = complaint(text / "c.json")
    assert "'</s>'" in message
    assert "tokenizer.end_of_text=" in message
    assert END_OF_TEXT in message


def test_file_tokenizer_from_end_to_end(workplace):
    corpus = workplace.sentences(60)
    path = workplace.text / "t.json"
    path.write_text(BPE.tokenizer.to_str())
    config = FileTokenizerConfig(name="file", path=str(path), end_of_text=END_OF_TEXT)
    folder = prepare(corpus, config, progress=False)
    shards = open_shards(folder)
    assert shards.vocab_size == BPE.vocab_size
    assert shards.end_of_text == BPE.end_of_text
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == shards.tokenizer_sha256
    moved = path.rename(workplace.text / "u.json")
    same = FileTokenizerConfig(name="file", path=str(moved), end_of_text=END_OF_TEXT)
    assert prepare(corpus, same, progress=False) == folder
    changed = json.loads(moved.read_text())
    changed["added_tokens"].append(changed["added_tokens"][0] | {"id": 999, "content": "<new>"})
    moved.write_text(json.dumps(changed))
    assert prepare(corpus, same, progress=False) != folder


def test_decoder_is_byte_level():
    assert isinstance(BPE.tokenizer.decoder, decoders.ByteLevel)
    assert np.concatenate(BPE.encode(["\u20ac"])).size >= 1
