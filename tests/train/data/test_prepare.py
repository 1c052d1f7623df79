"""Built once, whole or not at all; the split; what is refused."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError, WorkFailed
from train.config.sections.corpus import FilesCorpusConfig
from train.config.sections.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig
from train.data import prepare as prepare_module
from train.data.prepare import build_or_reuse, documents_to_split, prepare
from train.data.shards import TokenStream, open_shards
from train.data.tokenizers.base import pieces

BYTES = BytesTokenizerConfig(name="bytes")
BPE = BpeTokenizerConfig(name="bpe", vocab_size=300, train_bytes=10_000)

SCRIPT = """
import sys, time
from pathlib import Path
from train.config.sections.corpus import FilesCorpusConfig
from train.config.sections.tokenizer import BytesTokenizerConfig
from train.data import prepare
from common.errors import WorkFailed, UserError

def pause(*arguments):
    Path(sys.argv[2] + "/reached").touch()
    while not Path(sys.argv[2] + "/go on").exists():
        time.sleep(0.01)
    return 1.0

{extra}
prepare.bigram_loss = pause
config = FilesCorpusConfig(name="files", files=[sys.argv[1]], text_column="text", document_separator=None,
                           cache_dir=sys.argv[2] + "/cache", validation_fraction=0.1)
try:
    print(prepare.build_or_reuse(config, BytesTokenizerConfig(name="bytes"), progress=True)[1])
except (WorkFailed, UserError) as error:
    print(type(error).__name__, error)
"""


def start(workplace, extra: str = "") -> subprocess.Popen[str]:
    """A process that prepares text/*, and waits for `go_on` when all shards but no index are written."""
    arguments = [str(workplace.text / "*"), str(workplace.text.parent)]
    command = [sys.executable, "-c", SCRIPT.format(extra=extra), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def go_on(workplace) -> None:
    (workplace.text.parent / "go on").touch()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


def test_killed_build(workplace):
    corpus = workplace.sentences(60)
    process = start(workplace)
    wait_for(workplace.text.parent / "reached")
    process.kill()
    process.communicate()
    leftover = list(workplace.cache.glob(".building-*"))
    assert len(leftover) == 1
    assert list(leftover[0].glob("*.bin"))
    # Of another corpus, first: the lock of the dead is free, so anybody may clean up after him.
    kept = leftover[0].with_name(".building-ffff-1")
    kept.mkdir()
    (workplace.cache / "ffff.lock").touch()
    folder, built = build_or_reuse(corpus, BYTES, progress=False)
    assert built
    assert not list(workplace.cache.glob(".building-*"))
    assert open_shards(folder).train.documents > 40


def test_living_build_of_another_corpus_is_left_alone(workplace):
    workplace.sentences(60)
    process = start(workplace)
    wait_for(workplace.text.parent / "reached")
    other = workplace.write_json_lines(
        workplace.text / "other" / "b.jsonl", [workplace.sentence(number) for number in range(70)]
    )
    assert build_or_reuse(workplace.corpus(other), BYTES, progress=False)[1]
    assert len(list(workplace.cache.glob(".building-*"))) == 1
    go_on(workplace)
    said = process.communicate(timeout=60)
    assert said[0].strip() == "True"


def test_two_at_once_build_once(workplace):
    workplace.sentences(60)
    first = start(workplace)
    wait_for(workplace.text.parent / "reached")
    second = start(workplace)
    assert second.stderr is not None
    assert f"waiting for process {first.pid} " in second.stderr.readline()
    go_on(workplace)
    said = [process.communicate(timeout=60) for process in (first, second)]
    assert said == [("True\n", ""), ("False\n", "")]
    assert len(list(workplace.cache.glob("*/index.json"))) == 1


def test_interrupt_by_signal(workplace):
    workplace.sentences(60)
    process = start(workplace)
    wait_for(workplace.text.parent / "reached")
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    workplace.assert_nothing_left()


def test_file_size_limit(workplace):
    """A stand-in for a full disk that needs no privileges."""
    workplace.write_json_lines(workplace.text / "a.jsonl", [workplace.sentence(number) * 10 for number in range(600)])
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, {resource.RLIM_INFINITY}))"
    said = start(workplace, extra=limit).communicate(timeout=60)
    assert said[0].startswith("WorkFailed")
    assert str(workplace.cache) in said[0]
    assert "File too large" in said[0]
    assert "data.cache_dir=" in said[0]
    workplace.assert_nothing_left()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on_disk(workplace, disk: Path, count: int) -> FilesCorpusConfig:
    path = workplace.write_json_lines(workplace.text / "a.jsonl", [workplace.sentence(number) * 10 for number in range(count)])
    workplace.cache = disk / "cache"
    return workplace.corpus(path)


def test_disk_full(workplace, small_disk):
    corpus = on_disk(workplace, small_disk, 1500)
    with pytest.raises(WorkFailed) as error:
        prepare(corpus, BYTES, progress=False)
    assert "No space left on device" in str(error.value)
    assert str(workplace.cache) in str(error.value)
    assert "data.cache_dir=" in str(error.value)
    assert error.value.exit_code == 1
    workplace.assert_nothing_left()
    assert not list(workplace.cache.glob(".*"))


def test_disk_already_full(workplace, small_disk):
    corpus = on_disk(workplace, small_disk, 60)
    with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(WorkFailed, match=r"data\.cache_dir="):
        prepare(corpus, BYTES, progress=False)
    assert not list(small_disk.glob("cache/*/*"))


def test_read_only_cache_can_be_used(workplace, small_disk):
    corpus = on_disk(workplace, small_disk, 60)
    folder = prepare(corpus, BYTES, progress=False)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert build_or_reuse(corpus, BYTES, progress=False) == (folder, False)
    assert open_shards(folder).train.tokens > 0
    with pytest.raises(WorkFailed, match=r"Read-only file system[\s\S]*data\.cache_dir="):
        prepare(corpus, BPE, progress=False)


def test_cache_dir_is_a_file(workplace):
    corpus = workplace.sentences(60)
    workplace.cache.write_text("a file")
    with pytest.raises(WorkFailed, match=r"data\.cache_dir="):
        prepare(corpus, BYTES, progress=False)
    assert workplace.cache.read_text() == "a file"


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
