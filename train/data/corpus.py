"""A corpus: a deterministic stream of documents, and a fingerprint of its content."""

import glob
import hashlib
import json
import os
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import UserError
from train.config.sections.corpus import (
    CorpusConfig,
    FilesCorpusConfig,
    HuggingFaceCorpusConfig,
    PythonSourcesCorpusConfig,
    StdlibCorpusConfig,
)
from train.data.huggingface import read_data_set
from train.data.readers import CHUNK_BYTES, READERS, Advance, Reader, ReadOptions, read_python, readable

_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_INSTALLED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
# On file systems with coarse clocks, a file written this recently may change again without a new modification time.
_SETTLED_SECONDS = 2.0

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


def _ignore(count: int) -> None:
    return


@dataclass(frozen=True)
class Corpus:
    """An ordered list of files and how to read them.

    Attributes:
        sources: (file, kind) in document order; the kind is the file's suffix.
        readers: the reader of each kind.
        options: passed to the readers.
    """

    sources: tuple[tuple[Path, str], ...]
    readers: Mapping[str, Reader]
    options: ReadOptions = field(default_factory=ReadOptions)

    def documents(self, advance: Advance = _ignore) -> Iterator[str]:
        """Every document that is not blank, always in the same order, one at a time.

        `advance` is called with the number of bytes read. Raises `UserError` for a file that cannot be read.
        """
        for path, kind in self.sources:
            for text in self.readers[kind](path, self.options, advance):
                if text and not text.isspace():
                    yield text

    def stamps(self) -> list[Stamp]:
        """Size and modification time of every file, in order."""
        stamps = []
        for path, _ in self.sources:
            with readable(path):
                status = path.stat()
            stamps.append((status.st_size, status.st_mtime_ns))
        return stamps

    def fingerprint(self, cache_dir: Path, advance: Advance = _ignore) -> str:
        """SHA-256 (hexadecimal) of all files' content in document order and of the options that change their documents.

        It does not depend on the files' paths. The hash of each file is cached in `<cache_dir>/fingerprints.json` by absolute
        path, size and modification time, so that a second start does not read a big corpus again. The cache is optional: it
        may be missing, corrupt or not writable.
        """
        kinds = {kind for _, kind in self.sources}
        relevant: dict[str, str | None] = {}
        if ".txt" in kinds:
            relevant["document_separator"] = self.options.document_separator
        if kinds & {".jsonl", ".jsonl.zst", ".parquet"}:
            relevant["text_column"] = self.options.text_column
        cached = _read_fingerprints(cache_dir / "fingerprints.json")
        new: dict[str, list[object]] = {}
        files = []
        now = time.time()
        for (path, kind), (size, mtime_ns) in zip(self.sources, self.stamps(), strict=True):
            match cached.get(os.path.abspath(path)):
                case [cached_size, cached_mtime_ns, str(content)] if (cached_size, cached_mtime_ns) == (size, mtime_ns):
                    advance(size)
                case _:
                    content = _hash_file(path, advance)
                    if now - mtime_ns / 1e9 > _SETTLED_SECONDS:
                        new[os.path.abspath(path)] = [size, mtime_ns, content]
            files.append((kind, content))
        if new:
            _write_fingerprints(cache_dir / "fingerprints.json", cached | new)
        return hashlib.sha256(json.dumps([relevant, files]).encode()).hexdigest()


def open_corpus(config: CorpusConfig) -> Corpus:
    """The corpus of a configuration. No file is opened yet; a data set of Hugging Face is first written to one.

    Raises:
        WorkFailed: a data set cannot be read to its end, or the cache folder cannot be written.
        UserError: a glob matches nothing, or a path is a folder or an unknown kind of file; there is no such data set.
    """
    if isinstance(config, StdlibCorpusConfig):
        return _python_corpus(_stdlib_sources(config.include_tests))
    if isinstance(config, PythonSourcesCorpusConfig):
        return _python_corpus([*_stdlib_sources(include_tests=True), *_package_sources()])
    if isinstance(config, FilesCorpusConfig):
        return _files_corpus(config)
    if isinstance(config, HuggingFaceCorpusConfig):
        return Corpus(((read_data_set(config), ".jsonl"),), READERS)
    raise TypeError(f"not a corpus: {asdict(config)}")


def _stdlib_sources(include_tests: bool) -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # Python's build generates config-* and _sysconfigdata*: they are no source code, and differ between machines with the same
    # version of Python.
    excluded = _INSTALLED_FOLDERS if include_tests else _INSTALLED_FOLDERS | _TEST_FOLDERS
    sources = _sources_under(root, lambda folder: folder not in excluded and not folder.startswith("config-"))
    sources = [path for path in sources if not path.name.startswith("_sysconfigdata")]
    if not sources:
        raise UserError(f"no standard library sources under {root}; type data=files data.files=['text/**/*.txt']")
    return sources


def _package_sources() -> list[Path]:
    roots = {sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}  # of most machines one and the same
    return [path for root in sorted(roots) for path in _sources_under(Path(root), lambda folder: folder != "__pycache__")]


def _sources_under(root: Path, enter: Callable[[str], bool]) -> list[Path]:
    """The Python files under a folder, in the order of their paths below it. `enter`: whether to take a folder of this name."""
    relative = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if enter(name)]
        relative += [Path(folder, name).relative_to(root) for name in files if name.endswith(".py")]
    return [root / path for path in sorted(relative, key=lambda path: path.as_posix())]


def _python_corpus(sources: Sequence[Path]) -> Corpus:
    return Corpus(tuple((path, ".py") for path in sources), {".py": read_python})


def _files_corpus(config: FilesCorpusConfig) -> Corpus:
    if not config.files:
        raise UserError("data.files is empty; type data.files=['text/**/*.jsonl'] (known: " + ", ".join(READERS) + ")")
    return open_files(config.files, config.text_column, config.document_separator)


def open_files(
    patterns: Sequence[str], text_column: str = "text", document_separator: str | None = None, typed: str = "data.files=['%s']"
) -> Corpus:
    """The documents of files of your own. Raises `UserError` as `open_corpus` does.

    `typed`: how such files are typed, with `%s` for a glob.
    """
    matched: set[str] = set()
    for pattern in patterns:
        matched |= _matches(os.path.expanduser(pattern), typed)
    sources = tuple((Path(path), _kind(path, typed)) for path in sorted(matched))
    return Corpus(sources, READERS, ReadOptions(text_column, document_separator))


def _matches(pattern: str, typed: str) -> set[str]:
    if os.path.exists(pattern):  # a file name may contain [ or *
        if os.path.isdir(pattern):
            raise UserError(f"{pattern} is a folder; type {typed % (pattern.rstrip('/') + '/**/*.jsonl')}")
        return {os.path.abspath(pattern)}
    files = {os.path.abspath(path) for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)}
    if not files:
        raise UserError(
            f"no file matches {pattern!r} (looked from {os.getcwd()})\n"
            f"check the path, or type {typed % 'folder/**/*.jsonl'} with quotes that keep the shell from expanding it"
        )
    return files


def _kind(path: str, typed: str) -> str:
    for suffix in sorted(READERS, key=len, reverse=True):
        if path.lower().endswith(suffix):
            return suffix
    raise UserError(
        f"{path}: not a kind of file that can be read (known: {', '.join(READERS)})\n"
        f"narrow the glob, as in {typed % 'folder/**/*.jsonl'}"
    )


def _hash_file(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with readable(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _read_fingerprints(path: Path) -> dict[str, list[object]]:
    try:
        fingerprints = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return fingerprints if isinstance(fingerprints, dict) else {}


def _write_fingerprints(path: Path, fingerprints: dict[str, list[object]]) -> None:
    temporary = path.with_name(f".fingerprints-{os.getpid()}.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(fingerprints))
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
