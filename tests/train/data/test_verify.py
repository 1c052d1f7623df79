"""Tokens that are not what was written are noticed: before they are learned from for good, and never by an embedding."""

import json
import os
from pathlib import Path

import pytest

from common.errors import WorkFailed
from scaling.record import read_record
from tests.support import console
from tests.support.letters import corpus_of_letters
from train.data import verify
from train.data.__main__ import main
from train.data.shards import open_shards
from train.data.verify import DamagedTokens, Verification, is_verified, verify_tokens

RUN = [
    *("model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "model.ffn_size=32", "model.vocab_size=260"),
    *("train.steps=12", "train.sequence=32", "train.batch_tokens=256", "train.microbatch=4", "eval.tokens=512"),
    *("schedule.warmup_tokens=0", "checkpoint.every_tokens=1024"),
]


@pytest.fixture
def words(tmp_path) -> list[str]:
    return [f"run.dir={tmp_path}/runs", "run.name=a", *corpus_of_letters(tmp_path, 300), *RUN]


@pytest.fixture
def folder(words, tmp_path) -> Path:
    """Tokens on disk that nobody has compared yet."""
    assert main(["prepare", *words]) == 0
    return next(path.parent for path in (tmp_path / "cache").glob("*/index.json"))


def overwrite(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 2 * 2)
        file.write(content)


def every_file(folder: Path) -> list[str]:
    index = json.loads((folder / "index.json").read_bytes())
    return [name for split in index["splits"].values() for name in split["files"]]


def test_the_index_has_the_hash_of_every_file(folder):
    assert len(every_file(folder)) == 4
    checked = verify_tokens(folder)
    assert checked.bytes == sum((folder / name).stat().st_size for name in every_file(folder))
    assert (checked.files, checked.unhashed) == (4, 0)


def test_many_shards_have_their_own_hashes(workplace):
    from train.config.sections.tokenizer import BytesTokenizerConfig
    from train.data.prepare import build_or_reuse

    folder, _ = build_or_reuse(workplace.sentences(120), BytesTokenizerConfig(name="bytes"), progress=False, shard_tokens=1000)
    assert verify_tokens(folder).files > 6
    overwrite(folder / "train_00003.bin", b"\1\0")
    with pytest.raises(DamagedTokens, match=r"train_00003\.bin is not what was written"):
        verify_tokens(folder)


@pytest.mark.parametrize("number", range(4))
def test_a_flip_in_any_file_is_found(folder, number):
    overwrite(folder / every_file(folder)[number], b"\3\0")
    with pytest.raises(DamagedTokens, match="SHA-256 differs"):
        verify_tokens(folder)
    assert not is_verified(folder)


def test_a_file_is_compared_again_when_it_changes(folder):
    assert not is_verified(folder)
    verify_tokens(folder)
    assert is_verified(folder)
    os.utime(folder / "train_00000.bin", ns=(1, 1))
    assert not is_verified(folder)
    verify_tokens(folder)
    for content in (b"", b"{", b"[]"):
        next(folder.glob("verified_*")).write_bytes(content)
        assert not is_verified(folder)


def test_a_folder_that_cannot_be_written_is_compared_every_time(folder, monkeypatch):
    def fail(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(verify, "write_atomically", fail)
    assert verify_tokens(folder).files == 4
    assert not is_verified(folder)


def test_an_index_from_before_there_were_hashes_is_taken_as_it_is(folder):
    index = json.loads((folder / "index.json").read_bytes())
    for split in index["splits"].values():
        del split["sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    checked = verify_tokens(folder)
    assert (checked.bytes, checked.unhashed) == (0, 4)
    assert "have no hash" in str(checked)


def test_in_the_background_it_is_found_too(folder):
    Verification(folder, wanted=False).wait()
    overwrite(folder / "validation_00000.bin", b"\3\0")
    verification = Verification(folder, wanted=True)
    with pytest.raises(DamagedTokens):
        verification.wait()
    with pytest.raises(DamagedTokens):
        verification.check()


def test_a_token_outside_the_vocabulary_is_never_given_out(folder):
    overwrite(folder / "train_00000.bin", b"\xff" * 64)
    shards = open_shards(folder)
    middle = shards.train.tokens // 2
    assert len(shards.train.read(0, middle))
    with pytest.raises(WorkFailed, match=f"has the token 65535 at {middle:,}, outside the vocabulary of 257"):
        shards.train.read(0, shards.train.tokens)


def test_document_ends_without_a_header_are_refused(folder):
    content = bytearray((folder / "train_ends.npy").read_bytes())
    content[:16] = b"\xff" * 16
    (folder / "train_ends.npy").write_bytes(content)
    with pytest.raises(DamagedTokens, match=r"train_ends\.npy cannot be read"):
        open_shards(folder)


def test_the_command_says_how_fast_or_what_is_wrong(folder, words, capsys):
    assert main(["verify", *words]) == 0
    assert "bytes of tokens verified at" in capsys.readouterr().out
    overwrite(folder / "train_00000.bin", b"\3\0")
    assert main(["verify", *words]) == 1
    said = capsys.readouterr().err
    assert "train_00000.bin is not what was written" in said
    assert f"the tokens in {folder}" in said


@pytest.mark.parametrize("content", [b"\xff" * 64, b"\3\0"], ids=["outside", "inside"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_on_damaged_tokens_ends_before_its_first_checkpoint(group, words, folder, tmp_path, content, ranks):
    overwrite(folder / "train_00000.bin", content)
    overwrite(folder / "validation_00000.bin", content)
    answers = group(ranks).run(console.on_rank, [*words, f"parallel.shard={ranks}"])
    assert [code for code, _, _ in answers] == [1] * ranks
    console.Answer(*answers[0]).assert_refused("the tokens in", "are damaged", "delete that folder", code=1)
    run = tmp_path / "runs" / "a"
    assert not list((run / "checkpoints").glob("step_*")) if (run / "checkpoints").exists() else True
    for path in folder.iterdir():
        path.unlink()
    assert console.warm("train", *words).code == 0
    assert read_record(run).status == "finished"


def test_the_first_run_says_how_fast_and_the_next_is_silent(words, folder):
    assert "bytes of tokens verified at" in console.warm("train", *words).err
    assert "verified at" not in console.warm("train", *words, "run.name=b").err
    assert read_record(folder.parent.parent / "runs" / "b").corpus == folder.name
