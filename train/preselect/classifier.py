"""The fastText classifier that tells documents of high predictive strength from documents of low."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, WorkFailed
from train.trained.output import output_folder

MODEL_FILE = "classifier.bin"
_END = "</s>"
_HELD_OUT = 0.1
# fastText with less than ten threads leaves a part of its input matrix as the memory was: random numbers, even NaN. A matrix
# of more than 32 MiB is always fresh memory, which is zero, so that one thread gives the same classifier every time.
MIN_BUCKET = 100_000
_WORDS_SHOWN = 20


@dataclass(frozen=True)
class Hyperparameters:
    """Of fastText; the defaults are those of the paper's table 5 and, where it says nothing, of fastText."""

    lr: float = 0.1
    dim: int = 100
    epoch: int = 5
    wordNgrams: int = 2
    minn: int = 0
    maxn: int = 0
    bucket: int = 2_000_000
    thread: int = 1
    """more are faster, but then no two trainings give the same classifier"""


def line_of(text: str) -> str:
    """A document as fastText reads it: one line, its case kept."""
    return " ".join(text.split("\n"))


def train_classifier(
    positives: Sequence[str], negatives: Sequence[str], out: Path, hyperparameters: Hyperparameters, seed: int = 0
) -> dict[str, Any]:
    """Train on nine tenths of the documents, write `out`, and return what is in its classifier.json.

    fastText ends every document with a token of its own, whose share of the document falls with the length, so that its
    vector would carry the length of the two classes into the score. The vector is set to zero.

    Raises:
        UserError: a class has fewer than ten documents, or `out` is in use.
        WorkFailed: fastText finds no word to learn from, or the disk is full.
    """
    for name, texts in (("positive", positives), ("negative", negatives)):
        if len(texts) < 10:
            raise UserError(f"{len(texts)} {name} documents: a classifier needs ten of each kind, better thousands")
    examples = [(1, text) for text in positives] + [(0, text) for text in negatives]
    random.Random(seed).shuffle(examples)
    held_out = max(1, round(_HELD_OUT * len(examples)))
    fasttext = import_fasttext()
    with output_folder(out) as folder:
        lines = folder / "examples.txt"
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(f"__label__{label} {line_of(text)}\n" for label, text in examples[held_out:])
        try:
            model = fasttext.train_supervised(str(lines), verbose=0, **asdict(hyperparameters))
        except (ValueError, RuntimeError) as error:
            raise WorkFailed(f"fastText cannot learn from these documents: {error}") from None
        lines.unlink()
        np.asarray(model.f.getInputMatrix())[model.get_word_id(_END)] = 0.0  # a view of the model's own memory
        model.save_model(str(folder / MODEL_FILE))
        right = sum((p > 0.5) == (label == 1) for p, (label, _) in zip(_of(model, examples), examples[:held_out], strict=False))
        words = telling_words(model)
        result = {
            "positives": len(positives),
            "negatives": len(negatives),
            "held_out": held_out,
            "held_out_accuracy": right / held_out,
            "hyperparameters": asdict(hyperparameters),
            "seed": seed,
            "words_for": words[:_WORDS_SHOWN],
            "words_against": words[::-1][:_WORDS_SHOWN],
        }
        (folder / "classifier.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _of(model: Any, examples: list[tuple[int, str]]) -> Iterator[float]:
    score = scorer(model, "__label__1")
    return (score(text) for _, text in examples)


def telling_words(model: Any) -> list[tuple[str, float]]:
    """(word, how much it speaks for label 1), highest first: its vector times the difference of the two output vectors."""
    output = np.asarray(model.get_output_matrix())
    labels = model.get_labels()
    direction = output[labels.index("__label__1")] - output[labels.index("__label__0")]
    words = [word for word in model.get_words() if word != _END]
    vectors = np.asarray(model.f.getInputMatrix())
    weights = [(word, float(vectors[model.get_word_id(word)] @ direction)) for word in words]
    return sorted(weights, key=lambda pair: (-pair[1], pair[0]))


def scorer(model: Any, label: str) -> Any:
    """text -> probability of `label`."""
    labels = len(model.get_labels())

    def score(text: str) -> float:
        # The line's end is what fastText's own predict() adds.
        return next(
            (float(p) for p, name in model.f.predict(line_of(text) + "\n", labels, 0.0, "strict") if name == label), 0.0
        )

    return score


def open_classifier(path: Path, label: str = "__label__1") -> Any:
    """A scorer of texts from a folder that `train` wrote or from any fastText model (.bin).

    Raises:
        UserError: there is no model, it cannot be read, or it has no such label.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no classifier at {file}: give a folder that foretrain preselect train wrote, or a .bin")
    try:
        model = import_fasttext().load_model(str(file))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{file} is not a fastText model: {error}") from None
    labels = model.get_labels()
    if label not in labels:
        raise UserError(f"{file} has no label {label!r}; it has: {', '.join(labels[:20])}\ntype --label ONE_OF_THEM")
    return scorer(model, label)


def import_fasttext() -> Any:
    """The library. Raises `UserError` where it is missing."""
    try:
        import fasttext
    except ImportError:
        raise UserError("the classifier needs fastText; type: pip install 'foretrain[preselect]'") from None
    return fasttext
