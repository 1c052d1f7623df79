"""Score a corpus file by file, find the threshold, write what is kept: in bounded memory, and resumable.

The folder `out` holds kept files beside `.work`, where the score and the length of every document lie, eight bytes each.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import write_atomically
from train.preselect.classifier import open_classifier
from train.preselect.documents import Document, Writer, read_documents

_DOCUMENT = np.dtype([("score", "<f4"), ("characters", "<u4")])
_BUFFERED = 4096
Scores = npt.NDArray[Any]


@dataclass(frozen=True)
class Request:
    """What decides which documents are kept. `keep` is a share of all characters; one of `keep` and `threshold` is None."""

    files: tuple[tuple[str, str], ...]
    classifier: str
    label: str
    text_column: str
    keep: float | None
    threshold: float | None


def random_score(text: str) -> float:
    """Uniform in [0, 1), decided by the text alone: the baseline that every selection must beat."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=3).digest()) / (1 << 24)


def filter_files(request: Request, out: Path, workers: int) -> dict[str, Any]:
    """Do what `request` says, as far as it is not done. Returns the counts, which also lie in `out`/filter.json.

    Raises:
        UserError: a file or the classifier cannot be read, `out` holds another request's output, or nothing is kept.
    """
    open_scorer(request)  # before anything is written
    work = _claim(request, out)
    numbers = range(len(request.files))
    _each(partial(_score_file, request, work), numbers, workers)
    parts = [np.memmap(file, _DOCUMENT, "r") for n in numbers if (file := work / f"{n:05}.scores").stat().st_size]
    if request.keep is not None:
        threshold = threshold_of(parts, request.keep)
    else:
        assert request.threshold is not None
        threshold = request.threshold
    total, kept, documents, kept_documents = 0, 0, 0, 0
    for part in parts:
        chosen = part["score"] >= np.float32(threshold)
        documents, kept_documents = documents + len(part), kept_documents + int(chosen.sum())
        total += int(part["characters"].sum(dtype=np.int64))
        kept += int(part["characters"][chosen].sum(dtype=np.int64))
    if not kept_documents:
        highest = max((float(part["score"].max()) for part in parts), default=0.0)
        raise UserError(f"nothing is kept: the highest of {documents:,} scores is {highest:.4g}; choose a lower --threshold")
    names = _names([Path(file) for file, _ in request.files], [kind for _, kind in request.files])
    _each(partial(_write_file, request, work, out, names, threshold), numbers, workers)
    bad = [line for n in numbers for line in (work / f"{n:05}.bad").read_text(encoding="utf-8").splitlines()]
    write_atomically(out / "bad.txt", "".join(f"{line}\n" for line in bad))
    result: dict[str, Any] = {
        "documents": documents,
        "kept_documents": kept_documents,
        "characters": total,
        "kept_characters": kept,
    }
    result |= {"threshold": float(np.float32(threshold)), "bad_documents": len(bad)}
    write_atomically(out / "filter.json", json.dumps({**result, "request": asdict(request)}, indent=1))
    return result


def open_scorer(request: Request) -> Callable[[str], float]:
    """The function text -> score of a request."""
    if request.classifier == "random":
        return random_score
    scorer: Callable[[str], float] = open_classifier(Path(request.classifier), request.label)
    return scorer


def threshold_of(parts: Iterable[Scores], keep: float) -> float:
    """The lowest score among the highest-scored documents that together hold at least the share `keep` of all characters.

    The bits of a number from 0 up, read as an integer, are in the order of the numbers; so two counts of characters, by the
    upper and the lower half of the bits, find the score exactly in a fixed amount of memory.
    """
    parts = list(parts)
    wanted = keep * sum(int(part["characters"].sum(dtype=np.int64)) for part in parts)
    upper, above = _bin(parts, lambda bits: bits >> 16, None, wanted, 0.0)
    lower, _ = _bin(parts, lambda bits: bits & 0xFFFF, upper, wanted, above)
    return float(np.uint32(upper << 16 | lower).view(np.float32))


def _bin(parts: list[Scores], half: Any, upper: int | None, wanted: float, above: float) -> tuple[int, float]:
    counts = np.zeros(1 << 16)
    for part in parts:
        bits = np.ascontiguousarray(part["score"]).view(np.uint32)
        chosen = slice(None) if upper is None else bits >> 16 == upper
        counts += np.bincount(half(bits[chosen]), part["characters"][chosen], 1 << 16)
    from_top = above + np.cumsum(counts[::-1])
    place = int(np.argmax(from_top >= wanted)) if from_top[-1] >= wanted else len(counts) - 1
    return len(counts) - 1 - place, float(from_top[place] - counts[::-1][place])


def _claim(request: Request, out: Path) -> Path:
    work = out / ".work"
    described = json.dumps([asdict(request), [_stamp(Path(file)) for file, _ in request.files]])
    try:
        if out.exists() and any(out.iterdir()) and not (work / "request.json").is_file():
            raise UserError(f"{out} exists and is not an empty folder: choose another --out, or delete it")
        work.mkdir(parents=True, exist_ok=True)
        claim = work / "request.json"
        if claim.is_file() and claim.read_text(encoding="utf-8") != described:
            raise UserError(f"{out} holds the output of another request, or the files have changed: choose another --out")
        write_atomically(claim, described)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    return work


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _each(task: Callable[[int], None], numbers: Iterable[int], workers: int) -> None:
    if workers == 1:
        for number in numbers:
            task(number)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(task, numbers))


def _score_file(request: Request, work: Path, number: int) -> None:
    done = work / f"{number:05}.scores"
    if done.exists():
        return
    score = _scorer_of_process(request)
    file, kind = request.files[number]
    temporary, bad, buffered = done.with_suffix(".part"), list[Document](), list[tuple[float, int]]()
    with temporary.open("wb") as stream:
        for document in read_documents(Path(file), kind, request.text_column):
            if document.text is None:
                bad.append(document)
                continue
            buffered.append((max(0.0, score(document.text)), len(document.text)))
            if len(buffered) == _BUFFERED:
                stream.write(np.array(buffered, _DOCUMENT).tobytes())
                buffered = []
        stream.write(np.array(buffered, _DOCUMENT).tobytes())
        if bad and not stream.tell() and all(item.fault.startswith("no field") for item in bad):
            raise UserError(f"{file}: no line has a field {request.text_column!r}; type --text-column for the text's own name")
    write_atomically(work / f"{number:05}.bad", "".join(f"{item.place}: {item.fault}\n" for item in bad))
    os.replace(temporary, done)


_open: list[tuple[Request, Callable[[str], float]]] = []


def _scorer_of_process(request: Request) -> Callable[[str], float]:
    if not _open or _open[0][0] != request:
        _open[:] = [(request, open_scorer(request))]
    return _open[0][1]


def _names(files: list[Path], kinds: list[str]) -> list[Path]:
    common = Path(os.path.commonpath([file.parent for file in files]))
    return [
        file.relative_to(common).with_suffix(".txt.jsonl") if kind == ".txt" else file.relative_to(common)
        for file, kind in zip(files, kinds, strict=True)
    ]


def _write_file(request: Request, work: Path, out: Path, names: list[Path], threshold: float, number: int) -> None:
    done = out / names[number]
    scores_file = work / f"{number:05}.scores"
    scores = np.fromfile(scores_file, _DOCUMENT)["score"]
    kept = scores >= np.float32(threshold)
    if done.exists() or not kept.any():
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    file, kind = request.files[number]
    temporary = work / f"{number:05}.kept"
    writer = Writer(temporary, kind)
    good = (document for document in read_documents(Path(file), kind, request.text_column) if document.text is not None)
    for document, score, keep in zip(good, scores, kept, strict=True):
        if keep:
            writer.write(document.record, float(score))
    writer.close()
    os.replace(temporary, done)
