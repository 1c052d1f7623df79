"""Every kind of file, every way it can be bad, and fingerprints."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from train.config.sections.corpus import PythonSourcesCorpusConfig, StdlibCorpusConfig
from train.config.sections.tokenizer import BytesTokenizerConfig
from train.data import readers
from train.data.corpus import Corpus, open_corpus
from train.data.prepare import prepare

BYTES = BytesTokenizerConfig(name="bytes")


def complaint(workplace, *files, **options) -> str:
    """What `prepare` says about a corpus; leaves nothing behind."""
    with pytest.raises(UserError) as error:
        prepare(workplace.corpus(*files, **options), BYTES, progress=False)
    workplace.assert_nothing_left()
    message = str(error.value)
    assert 1 <= len(message.splitlines()) <= 5
    return message


def documents(workplace, *files, **options) -> list[str]:
    return list(open_corpus(workplace.corpus(*files, **options)).documents())


def test_mixed_kinds_sorted_without_duplicates(workplace):
    text = workplace.text
    (text / "b.txt").write_text("bee")
    (text / "sub").mkdir()
    (text / "sub" / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "  "}\n{"text": "two"}')
    compressed = zstandard.compress(b'{"text": "three"}\n') + zstandard.compress(b'{"text": "four"}\n')
    (text / "c.jsonl.zst").write_bytes(compressed)
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["five", "s\u00efx"]}), text / "d.parquet")
    (text / "empty.txt").write_text(" \n")
    found = documents(workplace, text / "**" / "*.*", text / "b.txt")
    assert found == ["bee", "three", "four", "five", "s\u00efx", "one", "two"]


def test_separator(workplace):
    (workplace.text / "a.txt").write_bytes(b"one\r\n<end>two<end>\n<end>three")
    assert documents(workplace, document_separator="<end>") == ["one\r\n", "two", "three"]
    assert documents(workplace) == ["one\r\n<end>two<end>\n<end>three"]
    assert "data.document_separator=null" in complaint(workplace, document_separator="")


@given(st.lists(st.text("ab", max_size=5), max_size=8), st.text("ab", min_size=1, max_size=3))
def test_separator_across_chunks(texts, separator):
    assert list(readers._split(iter(texts), separator)) == "".join(texts).split(separator)


@given(st.lists(st.text(), max_size=5), st.integers(1, 7))
def test_chunks_cut_characters_and_lines_anywhere(tmp_path_factory, texts, chunk):
    folder = tmp_path_factory.mktemp("chunks")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    (folder / "b.txt").write_bytes("\u2028".join(texts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_BYTES", chunk)
        options = readers.ReadOptions()
        assert list(readers.read_json_lines(folder / "a.jsonl", options, lambda count: None)) == texts
        assert "".join(readers.read_text(folder / "b.txt", options, lambda count: None)) == "\u2028".join(texts)


def test_stdlib():
    config = StdlibCorpusConfig(name="stdlib", include_tests=False, cache_dir="unused", validation_fraction=0.1)
    corpus = open_corpus(config)
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [path.relative_to(root).as_posix() for path, _ in corpus.sources]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert "json/decoder.py" in names
    assert not [name for name in names if "site-packages" in name or "/test/" in f"/{name}"]
    assert next(iter(corpus.documents())).strip()
    with_tests = {path for path, _ in open_corpus(replace(config, include_tests=True)).sources}
    assert {path for path, _ in corpus.sources} < with_tests


def test_python_sources(tmp_path, monkeypatch):
    """The standard library with its tests, in its order, then the packages."""
    for name in ("b/__init__.py", "b/__pycache__/old.py", "b/tests/test_b.py", "a.py", "a.pyi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    stdlib = StdlibCorpusConfig(name="stdlib", include_tests=True, cache_dir="unused", validation_fraction=0.1)
    expected = [path for path, _ in open_corpus(stdlib).sources]
    paths = sysconfig.get_paths() | {"purelib": str(tmp_path), "platlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    config = PythonSourcesCorpusConfig(name="python_sources", cache_dir="unused", validation_fraction=0.1)
    sources = [path for path, _ in open_corpus(config).sources]
    assert sources == [*expected, *(tmp_path / name for name in ("a.py", "b/__init__.py", "b/tests/test_b.py"))]


def test_undecodable_stdlib_file_is_skipped(tmp_path):
    (tmp_path / "a.py").write_bytes(b"# \xff")
    (tmp_path / "b.py").write_bytes(b"x = 1")
    corpus = Corpus(tuple((tmp_path / name, ".py") for name in ("a.py", "b.py")), {".py": readers.read_python})
    assert list(corpus.documents()) == ["x = 1"]


def test_no_match(workplace):
    message = complaint(workplace, workplace.text / "*.jsonl")
    assert str(workplace.text / "*.jsonl") in message
    assert "data.files=" in message
    assert "data.files=" in complaint(workplace, workplace.text)  # a folder
    (workplace.text / "folder.txt").mkdir()
    assert "no file matches" in complaint(workplace, workplace.text / "*.txt")


def test_no_files(workplace):
    with pytest.raises(UserError, match=r"data\.files is empty"):
        open_corpus(replace(workplace.corpus("x"), files=[]))


def test_unknown_suffix(workplace):
    (workplace.text / "a.csv").write_text("a,b")
    message = complaint(workplace)
    assert "a.csv" in message
    assert ".txt, .jsonl, .jsonl.zst, .parquet" in message


def test_name_with_glob_characters(workplace):
    (workplace.text / "a[1].txt").write_text("text")
    assert documents(workplace, workplace.text / "a[1].txt") == ["text"]


@pytest.mark.parametrize("content, offset", [(b"abc\xff", 3), (b"abc\xe2\x82", 3), (b"\xe2\x82\xac\xe2x", 3)])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_invalid_utf8_text(workplace, monkeypatch, content, offset, chunk):
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk)
    (workplace.text / "a.txt").write_bytes(content)
    message = complaint(workplace)
    assert str(workplace.text / "a.txt") in message
    assert f"byte offset {offset}" in message


def test_invalid_utf8_json_line(workplace):
    first = b'{"text": "fine"}\n'
    (workplace.text / "a.jsonl").write_bytes(first + b'{"text": "\xff"}\n')
    message = complaint(workplace)
    assert "a.jsonl:2" in message
    assert f"byte offset {len(first) + 10}" in message


def test_invalid_utf8_parquet(workplace):
    broken = pyarrow.array([b"fine", b"ab\xff"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), workplace.text / "a.parquet")
    message = complaint(workplace)
    assert "a.parquet: row 1" in message
    assert "byte offset 2" in message


@pytest.mark.parametrize("line", ["{", '{"text": "a"} x', '["text"]', '"text"', '{"text": "\\ud800"}', "[" * 100_000])
def test_broken_json_line(workplace, line):
    (workplace.text / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    assert "a.jsonl:3: " in complaint(workplace)


def test_missing_text(workplace):
    (workplace.text / "a.jsonl").write_text('{"text": "fine"}\n{"body": "x", "id": 1}\n')
    message = complaint(workplace)
    assert "a.jsonl:2" in message
    assert "body, id" in message
    assert "data.text_column=" in message
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), workplace.text / "b.parquet")
    assert "type data.text_column=content" in complaint(workplace, workplace.text / "b.parquet")
    assert documents(workplace, workplace.text / "b.parquet", text_column="content") == ["x"]


@pytest.mark.parametrize("value, kind", [(None, "null"), (3, "int"), (["a"], "list")])
def test_text_is_no_string(workplace, value, kind):
    (workplace.text / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps({"text": value}))
    message = complaint(workplace, workplace.text / "a.jsonl")
    assert "a.jsonl:2" in message
    assert f"is {kind}" in message
    column = pyarrow.array([value])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), workplace.text / "a.parquet")
    message = complaint(workplace, workplace.text / "a.parquet")
    assert "a.parquet: row 0" in message
    assert f"is {kind}" in message


def test_truncated_zst(workplace):
    content = zstandard.compress(b'{"text": "fine"}\n' * 1000)
    for kept in (len(content) - 3, 5):
        (workplace.text / "a.jsonl.zst").write_bytes(content[:kept])
        assert "a.jsonl.zst is cut short" in complaint(workplace)
    (workplace.text / "a.jsonl.zst").write_bytes(b'{"text": "not compressed"}')
    assert "not a readable zstandard file" in complaint(workplace)


def test_not_parquet(workplace):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["fine"] * 100}), workplace.text / "a.parquet")
    whole = (workplace.text / "a.parquet").read_bytes()
    for content in (b"text", b"", whole[:-4], b"PAR1" + os.urandom(200) + b"PAR1"):
        (workplace.text / "a.parquet").write_bytes(content)
        assert str(workplace.text / "a.parquet") in complaint(workplace)


def test_no_permission():
    """In a process without privileges, because the super-user may read everything."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from train.config.sections.corpus import FilesCorpusConfig\n"
        "from train.data.corpus import open_corpus\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "config = FilesCorpusConfig(name='files', files=[sys.argv[1]], text_column='text', document_separator=None,\n"
        "    cache_dir='unused', validation_fraction=0.1)\n"
        "try: open_corpus(config).fingerprint(Path('/nonexistent'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        os.chmod(folder, 0o755)
        path = Path(folder, "a.txt")
        path.write_text("text")
        path.chmod(0)
        said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("UserError")
    assert f"{path}: Permission denied" in said.stdout


@pytest.mark.parametrize("content", ["", " \n\t ", "\n" * 10])
def test_no_text_at_all(workplace, content):
    (workplace.text / "a.txt").write_text(content)
    assert "no text at all" in complaint(workplace)


def test_fingerprint_is_of_content_and_order(workplace, tmp_path):
    def fingerprint(folder: Path, **options) -> str:
        corpus = open_corpus(workplace.corpus(folder / "*", **options))
        return corpus.fingerprint(tmp_path / "none")

    def folder(name: str, contents: dict[str, str]) -> Path:
        (tmp_path / name).mkdir()
        for file, content in contents.items():
            (tmp_path / name / file).write_text(content)
        return tmp_path / name

    one = folder("one", {"a.txt": "first", "b.txt": "second"})
    assert fingerprint(one) == fingerprint(folder("two", {"a.txt": "first", "c.txt": "second"}))
    others = [
        fingerprint(folder("three", {"b.txt": "first", "a.txt": "second"})),
        fingerprint(folder("four", {"a.jsonl": "first", "b.txt": "second"})),
        fingerprint(folder("five", {"a.txt": "firs", "b.txt": "tsecond"})),
        fingerprint(one, document_separator="x"),
    ]
    assert len({fingerprint(one), *others}) == 5
    assert fingerprint(one, text_column="body") == fingerprint(one)  # no file here has columns


def test_fingerprints_are_remembered(workplace, monkeypatch):
    config = workplace.sentences(5)
    first = open_corpus(config).fingerprint(workplace.cache)

    def refuse(*arguments):
        raise AssertionError("read the content again")

    with monkeypatch.context() as patch:
        patch.setattr("train.data.corpus._hash_file", refuse)
        assert open_corpus(config).fingerprint(workplace.cache) == first
    for garbage in ("{", "[1]", '{"%s": 3}' % (workplace.text / "a.jsonl")):
        (workplace.cache / "fingerprints.json").write_text(garbage)
        assert open_corpus(config).fingerprint(workplace.cache) == first
    changed = workplace.text / "a.jsonl"
    changed.write_text(changed.read_text().replace("cat", "dog"))  # same size, other time
    assert open_corpus(config).fingerprint(workplace.cache) != first


def test_a_file_just_written_is_not_remembered(workplace):
    (workplace.text / "a.txt").write_text("text")
    open_corpus(workplace.corpus()).fingerprint(workplace.cache)
    assert not (workplace.cache / "fingerprints.json").exists()


def test_advance_counts_every_byte(workplace):
    text = workplace.text
    (text / "a.txt").write_text("x" * 1000)
    (text / "c.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "three"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["five"]}), text / "d.parquet")
    corpus = open_corpus(workplace.corpus())
    total = [0]
    assert len(list(corpus.documents(lambda count: total.__setitem__(0, total[0] + count)))) == 3
    assert total[0] == sum(size for size, _ in corpus.stamps())
