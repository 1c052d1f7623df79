"""Shards that are damaged, or not those of the tokenizer, are refused with what to do."""

import json
import os
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from train.config.sections.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig
from train.data.prepare import build_or_reuse, prepare
from train.data.shards import TokenStream, open_shards

BYTES = BytesTokenizerConfig(name="bytes")
BPE = BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000)


@pytest.fixture
def folder(workplace) -> Path:
    return build_or_reuse(workplace.sentences(60), BYTES, progress=False, shard_tokens=500)[0]


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        open_shards(folder)
    message = str(error.value)
    assert f"delete {folder}" in message
    assert message.count("\n") < 5
    return message


@pytest.mark.parametrize("name", ["train_00001.bin", "validation_00000.bin", "train_ends.npy"])
def test_damaged_shard(folder, name):
    path = folder / name
    size = path.stat().st_size
    os.truncate(path, size - 2)
    message = refusal(folder)
    assert f"{path} has {size - 2} bytes" in message
    assert f"says {size}" in message
    with path.open("ab") as file:
        file.write(b"xxxx")
    assert f"{path} has {size + 2} bytes" in refusal(folder)
    path.unlink()
    assert f"{path} is missing" in refusal(folder)


def test_other_tokenizer(folder, workplace):
    path = folder / "tokenizer.json"
    sha256 = json.loads((folder / "index.json").read_text())["tokenizer_sha256"]
    other = prepare(workplace.sentences(60), BPE, progress=False)
    shutil.copy(other / "tokenizer.json", path)
    message = refusal(folder)
    assert sha256 in message
    assert open_shards(other).tokenizer_sha256 in message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "splits": {"train": 3}}'])
def test_broken_index(folder, content):
    (folder / "index.json").write_text(content)
    refusal(folder)


def test_other_schema_and_other_totals(folder):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"schema": 99}))
    assert "schema 99" in refusal(folder)
    index["splits"]["train"]["tokens"] += 1
    (folder / "index.json").write_text(json.dumps(index))
    assert "do not hold" in refusal(folder)


def test_no_folder(tmp_path):
    assert "no readable index.json" in refusal(tmp_path / "nowhere")


def test_large_vocabulary_takes_four_bytes(make_stream):
    stream = make_stream([[70_000, 1, 2]])
    assert isinstance(stream, TokenStream)
    assert stream.read(0, 3).tolist() == [70_000, 1, 2]
    from train.data.shards import token_dtype

    assert [token_dtype(size) for size in (257, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]
