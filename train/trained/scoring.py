"""Scores of texts and tasks under a run's weights."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.errors import UserError
from parallel.mesh import World, build_meshes
from train.config import Config
from train.data.tokenizers.base import Encoder
from train.scoring.scorer import Scorer
from train.scoring.watch import Watch
from train.trained.weights import Weights, ready_engine


def open_scorer(run: Path, config: Config, weights: Weights, world: World, watch: Watch | None = None) -> Scorer:
    """A scorer of texts with a run's weights. A collective.

    For example, bits per byte of two texts in one process:

        config = evaluation_config(run, [])
        with connect(ProcessEnvironment.read()) as world:
            scorer = open_scorer(run, config, weights_to_use(run, config), world)
            print([score.bits_per_byte for score in scorer.documents(["import os", "def f(x):"])])

    `config` is the run's configuration on the current layout (`train.trained.layout.evaluation_config`), whose micro-batch is
    how many sequences are scored at a time. `watch` shows the progress.

    Raises:
        UserError: the run's tokenizer cannot be read.
    """
    tokenizer, end_of_text = read_run_tokenizer(run)
    name = tokenizer.id_to_token(end_of_text)
    if name is None:
        raise UserError(f"the tokenizer of {run} has no token {end_of_text}, which data.json says ends a text")
    engine = ready_engine(weights, world)
    return Scorer(engine, Encoder(tokenizer, name), config, build_meshes(config.parallel.layout, world.device), watch)


def read_run_tokenizer(run: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a run, which parses no text as special tokens, and its end-of-text token.

    Raises:
        UserError: it cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        return tokenizer, json.loads((run / "data.json").read_text(encoding="utf-8"))["end_of_text"]
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"the tokenizer of {run} cannot be read: {error!r}") from None


def score_documents(scorer: Scorer, texts: Iterable[str], *, per_document: bool) -> dict[str, Any]:
    """{"loss": nats per token, "bits_per_byte":, "bits_per_character":} of all texts together and, on request, "documents",
    the score of each in order. A collective.

    Raises:
        UserError: there is no text.
    """
    nats, tokens, characters, text_bytes = 0.0, 0, 0, 0
    documents = []
    for score in scorer.documents(texts):
        nats, tokens = nats + score.nats, tokens + score.tokens
        characters, text_bytes = characters + score.characters, text_bytes + score.bytes
        if per_document:
            documents.append(score.as_dict())
    if not tokens:
        raise UserError("there is no text to score: every document is empty or blank; check --files")
    bits = nats / math.log(2)
    result = {"loss": nats / tokens, "bits_per_byte": bits / text_bytes, "bits_per_character": bits / characters}
    return {**result, "documents": documents} if per_document else result
