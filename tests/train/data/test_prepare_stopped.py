"""Preparation that is killed, interrupted or out of room, and two at once: whole shards or nothing."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import WorkFailed
from train.config.sections.corpus import FilesCorpusConfig
from train.config.sections.tokenizer import BpeTokenizerConfig, BytesTokenizerConfig
from train.data.prepare import build_or_reuse, prepare
from train.data.shards import open_shards

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
